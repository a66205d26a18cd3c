#include "call.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

bool initialised;

void nap(int milliseconds)
{
    nanosleep(&(struct timespec){0, milliseconds * 1000000L}, NULL);
}

double now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

void note(const char *what)
{
    const char *path = getenv("FAKENVML_LOG");
    FILE *file = path ? fopen(path, "ae") : NULL;
    if (!file)
        return;
    fprintf(file, "%s %d\n", what, (int)getpid());
    fclose(file);
}

struct section *find(struct state *state, device handle)
{
    for (u32 at = 0; handle && at < state->gpus; at++)
        if (!strcmp(state->gpu[at].cell[UUID].text, handle))
            return &state->gpu[at];
    return NULL;
}

/* -1: still hanging. */
static ret judge(struct state *state, struct section *gpu, const char *call, double since)
{
    struct rule *rule = gpu ? state_rule(gpu, call) : NULL;
    if (!rule)
        rule = state_rule(&state->host, call);
    if (rule && !rule->code)
        return now() - since < rule->seconds ? -1 : OK;
    return rule ? rule->code : OK;
}

ret begin(const char *call, device handle, struct section **gpu, struct state **state)
{
    for (double since = now();; nap(20)) {
        struct state *held = state_lock();
        struct section *section = find(held, handle);
        ret answer = judge(held, section, call, since);
        if (answer < 0) {
            state_unlock();
            continue;
        }
        if (gpu)
            *gpu = section;
        if (state)
            *state = held;
        return answer;
    }
}

ret begin_gpu(const char *call, device handle, bool identity, struct section **gpu)
{
    ret code = begin(call, handle, gpu, NULL);
    if (code || !initialised)
        return code ? code : UNINITIALIZED;
    if (!*gpu || !strcmp((*gpu)->cell[STATE].text, "lost"))
        return GPU_IS_LOST;
    return !identity && !strcmp((*gpu)->cell[STATE].text, "reset_required") ? RESET_REQUIRED : OK;
}

ret end(ret code)
{
    state_unlock();
    return code;
}

ret put(const char *text, char *out, u32 size)
{
    return (u32)snprintf(out, size, "%s", text) < size ? OK : INSUFFICIENT_SIZE;
}

ret gpu_text(const char *call, device handle, enum key key, char *out, u32 size)
{
    struct section *gpu;
    ret code = begin_gpu(call, handle, true, &gpu);
    if (!code && !(code = gpu->cell[key].code))
        code = put(gpu->cell[key].text, out, size);
    return end(code);
}

ret gpu_numbers(const char *call, device handle, enum key key, u64 out[4])
{
    struct section *gpu;
    ret code = begin_gpu(call, handle, false, &gpu);
    if (!code)
        code = gpu->cell[key].code;
    for (int at = 0; !code && at < 4; at++)
        out[at] = gpu->cell[key].number[at];
    return end(code);
}

ret gpu_u32(const char *call, device handle, enum key key, int which, u32 *out)
{
    u64 numbers[4];
    ret code = gpu_numbers(call, handle, key, numbers);
    if (!code)
        *out = (u32)numbers[which];
    return code;
}

ret gpu_u64(const char *call, device handle, enum key key, int which, u64 *out)
{
    u64 numbers[4];
    ret code = gpu_numbers(call, handle, key, numbers);
    if (!code)
        *out = numbers[which];
    return code;
}

ret gpu_pair(const char *call, device handle, enum key key, u32 *first, u32 *second)
{
    u64 numbers[4];
    ret code = gpu_numbers(call, handle, key, numbers);
    if (!code) {
        *first = (u32)numbers[0];
        *second = (u32)numbers[1];
    }
    return code;
}
