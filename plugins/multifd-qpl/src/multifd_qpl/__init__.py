"""Intel QPL for multifd: the method ``qpl``, its IAA jobs, and a simulated IAA.

`method` is what multifd loads; `library` opens libqpl; `jobs` owns its jobs and calls the batches of
the C code; `software` is ISA-L; `simulator` is an IAA in virtual time.
"""
