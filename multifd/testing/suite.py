"""Every test of the kit, for a plugin's own test file::

from multifd.testing.suite import *

METHODS = ["NAME", "NAME:level=9"]
"""

from __future__ import annotations

from multifd.testing.test_channel import (
    test_abort,
    test_channels_in_threads,
    test_channels_interleaved,
    test_cleanup_twice,
    test_gil,
    test_iov_untouched,
    test_no_growth,
    test_pages_not_kept,
    test_setup_fails_half_way,
)
from multifd.testing.test_golden import (
    test_golden_vectors,
    test_reference_decoder,
)
from multifd.testing.test_method import (
    test_availability,
    test_identity,
    test_options,
)
from multifd.testing.test_payload import (
    test_capabilities_are_possible,
    test_deterministic_claim,
    test_page_independent_claim,
    test_payload_bound,
    test_round_trip,
    test_sequence,
    test_source_unchanged,
    test_sources,
    test_stateless_claim,
    test_verbatim_claim,
)
from multifd.testing.test_together import (
    test_any_history,
    test_migration_after_migration,
    test_shared_wire_code,
)
from multifd.testing.test_trust import (
    test_hostile_payloads,
    test_live_pages,
)

__all__ = [
    "test_abort",
    "test_any_history",
    "test_availability",
    "test_capabilities_are_possible",
    "test_channels_in_threads",
    "test_channels_interleaved",
    "test_cleanup_twice",
    "test_deterministic_claim",
    "test_gil",
    "test_golden_vectors",
    "test_hostile_payloads",
    "test_identity",
    "test_iov_untouched",
    "test_live_pages",
    "test_migration_after_migration",
    "test_no_growth",
    "test_options",
    "test_page_independent_claim",
    "test_pages_not_kept",
    "test_payload_bound",
    "test_reference_decoder",
    "test_round_trip",
    "test_sequence",
    "test_setup_fails_half_way",
    "test_shared_wire_code",
    "test_source_unchanged",
    "test_sources",
    "test_stateless_claim",
    "test_verbatim_claim",
]
