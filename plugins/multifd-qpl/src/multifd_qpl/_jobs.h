/* What both directions do with jobs; of this plugin alone. */
#ifndef MULTIFD_QPL_JOBS_H
#define MULTIFD_QPL_JOBS_H

#include "_batch.h"

int mq_is_aborted(const mq_channel *c);
uint32_t mq_find_pages(mq_channel *c, const mq_run *runs, uint32_t run_count);
void mq_begin(mq_channel *c, uint32_t n);
int mq_may_use_hardware(const mq_channel *c, uint32_t i);
uint32_t mq_submit(mq_channel *c, uint32_t i, int op, const uint8_t *in, uint32_t in_length, uint8_t *out,
                   uint32_t room);
uint32_t mq_await(mq_channel *c, uint32_t i);
void mq_await_rest(mq_channel *c, uint32_t n);
void mq_fall_back(mq_channel *c, uint32_t status);
int mq_is_sound(mq_channel *c, uint32_t i, uint32_t status, const uint8_t *page);
uint32_t mq_execute(mq_channel *c, int op, const uint8_t *in, uint32_t in_length, uint8_t *out, uint32_t room);
int mq_compress_whole(mq_channel *c, uint32_t n, uint8_t *out, size_t *used);
int mq_decompress_found(mq_channel *c, uint32_t n, const uint8_t *payload, size_t payload_length);
uint8_t *mq_slot(const mq_channel *c, uint8_t *slots, uint32_t i);

#endif
