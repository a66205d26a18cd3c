/* How every exported function begins and ends: rules, hangs, lost GPUs, the lock. */
#ifndef FAKENVML_CALL_H
#define FAKENVML_CALL_H

#include "state.h"

#include <stdbool.h>

#define EXPORT __attribute__((visibility("default")))

typedef int ret;
typedef const char *device; /* a handle is the UUID that it was opened for: it outlives a change of index */
typedef unsigned int u32;
typedef unsigned long long u64;

extern bool initialised;

void nap(int milliseconds);
double now(void);

/* What a test may want to know of a process that has ended: FAKENVML_LOG gets a line "WHAT PID". */
void note(const char *what);

/* The section of a GPU that has this UUID, or NULL. */
struct section *find(struct state *state, device handle);

/* Begin a call: hang as long as a rule says so, then hold the lock. Returns what a rule answers, or OK.
   A hang ends when its time is up or when the file takes it back: it is the driver that hangs, so neither
   SIGTERM nor a Python signal handler ends it. */
ret begin(const char *call, device handle, struct section **gpu, struct state **state);

/* Begin a call that needs nvmlInit and a GPU. ``identity``: answered even where a reset is required. */
ret begin_gpu(const char *call, device handle, bool identity, struct section **gpu);

/* Every begin has its end, whatever it returned. */
ret end(ret code);

/* Whole functions: one value of one GPU. */
ret gpu_text(const char *call, device handle, enum key key, char *out, u32 size);
ret gpu_numbers(const char *call, device handle, enum key key, u64 out[4]);
ret gpu_u32(const char *call, device handle, enum key key, int which, u32 *out);
ret gpu_u64(const char *call, device handle, enum key key, int which, u64 *out);
ret gpu_pair(const char *call, device handle, enum key key, u32 *first, u32 *second);
ret put(const char *text, char *out, u32 size);

#endif
