/* Pages that no codec shrinks; of this plugin alone. */
#ifndef MULTIFD_QPL_NOISE_H
#define MULTIFD_QPL_NOISE_H

#include <stdint.h>

int mq_is_noise(const uint8_t *page, uint32_t page_size);

#endif
