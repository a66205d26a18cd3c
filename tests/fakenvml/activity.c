/* Processes on a GPU, and the events that it reports. */
#include "call.h"

#include <stdlib.h>
#include <string.h>

struct process_info {
    u32 pid;
    u64 memory;
    u32 gpu_instance, compute_instance;
};

static ret processes(const char *call, device handle, int type, u32 *count, struct process_info *out)
{
    struct section *gpu;
    u32 size = *count, found = 0;
    ret code = begin_gpu(call, handle, false, &gpu);
    for (u32 at = 0; !code && at < gpu->processes; at++) {
        struct process *row = &gpu->process[at];
        if (row->type != type)
            continue;
        if (out && found < size)
            out[found] = (struct process_info){row->pid, row->memory, row->gpu_instance, row->compute_instance};
        found++;
    }
    if (!code) {
        *count = found;
        code = found > size ? INSUFFICIENT_SIZE : OK;
    }
    return end(code);
}

#define PROCESS_CALLS(name, type)                                                                                      \
    EXPORT ret name##_v2(device handle, u32 *count, struct process_info *out)                                          \
    {                                                                                                                  \
        return processes(__func__, handle, type, count, out);                                                          \
    }                                                                                                                  \
    EXPORT ret name##_v3(device handle, u32 *count, struct process_info *out)                                          \
    {                                                                                                                  \
        return processes(__func__, handle, type, count, out);                                                          \
    }
PROCESS_CALLS(nvmlDeviceGetComputeRunningProcesses, 'c')
PROCESS_CALLS(nvmlDeviceGetGraphicsRunningProcesses, 'g')
PROCESS_CALLS(nvmlDeviceGetMPSComputeRunningProcesses, 'm')

EXPORT ret nvmlDeviceGetAccountingBufferSize(device handle, u32 *out)
{
    (void)handle;
    *out = MAX_JOBS;
    return OK;
}

EXPORT ret nvmlDeviceGetAccountingPids(device handle, u32 *count, u32 *pids)
{
    struct section *gpu;
    ret code = begin_gpu(__func__, handle, false, &gpu);
    u32 size = *count;
    if (!code && !gpu->cell[ACCOUNTING].number[0])
        code = NOT_SUPPORTED;
    for (u32 at = 0; !code && at < gpu->jobs && at < size; at++)
        pids[at] = gpu->job[at].pid;
    if (!code) {
        *count = gpu->jobs;
        code = gpu->jobs > size ? INSUFFICIENT_SIZE : OK;
    }
    return end(code);
}

struct accounting {
    u32 gpu_utilization, memory_utilization;
    u64 memory, time_ms, start_us;
    u32 running, reserved[5];
};

EXPORT ret nvmlDeviceGetAccountingStats(device handle, u32 pid, struct accounting *out)
{
    struct section *gpu;
    ret code = begin_gpu(__func__, handle, false, &gpu), answer = NOT_FOUND;
    for (u32 at = 0; !code && at < gpu->jobs; at++) {
        struct job *job = &gpu->job[at];
        if (job->pid != pid)
            continue;
        *out = (struct accounting){job->utilization, 0, job->memory, job->time_ms, job->start_us, job->running, {0}};
        answer = OK;
    }
    return end(code ? code : answer);
}

EXPORT ret nvmlSystemGetProcessName(u32 pid, char *out, u32 size)
{
    struct state *state;
    ret code = begin(__func__, NULL, NULL, &state);
    const char *name = "-";
    for (u32 at = 0; !code && at < state->gpus; at++)
        for (u32 row = 0; row < state->gpu[at].processes; row++)
            if (state->gpu[at].process[row].pid == pid)
                name = state->gpu[at].process[row].name;
    if (!code)
        code = strcmp(name, "-") ? put(name, out, size) : NOT_FOUND;
    return end(code);
}

/* A set delivers each event once, and only those that came into the file after the set was made: that is
   how a driver does it, and so a process that starts later does not see what an earlier one was told. */
struct event_set {
    u64 after;
    struct {
        device handle;
        u64 types;
    } registered[MAX_GPUS];
    u32 gpus;
};

EXPORT ret nvmlEventSetCreate(struct event_set **out)
{
    struct state *state;
    ret code = begin(__func__, NULL, NULL, &state);
    struct event_set *set = code ? NULL : calloc(1, sizeof *set);
    for (u32 at = 0; set && at < state->gpus; at++)
        for (u32 row = 0; row < state->gpu[at].events; row++)
            if (state->gpu[at].event[row].sequence > set->after)
                set->after = state->gpu[at].event[row].sequence;
    *out = set;
    return end(code);
}

EXPORT ret nvmlDeviceRegisterEvents(device handle, u64 types, struct event_set *set)
{
    struct section *gpu;
    ret code = begin_gpu(__func__, handle, false, &gpu);
    if (!code && !(code = gpu->cell[EVENTS].code))
        code = types & ~gpu->cell[EVENTS].number[0] || set->gpus == MAX_GPUS ? NOT_SUPPORTED : OK;
    if (!code) {
        set->registered[set->gpus].handle = handle;
        set->registered[set->gpus++].types = types;
        note("register");
    }
    return end(code);
}

struct event_data {
    device handle;
    u64 type, data;
    u32 gpu_instance, compute_instance;
};

/* The oldest event of one GPU that the set has not delivered; sequence 0 where there is none. */
static struct event oldest(struct event_set *set, struct section *gpu, u64 types)
{
    struct event best = {0};
    for (u32 at = 0; gpu && at < gpu->events; at++) {
        struct event *event = &gpu->event[at];
        if (event->sequence > set->after && event->type & types && (!best.sequence || event->sequence < best.sequence))
            best = *event;
    }
    return best;
}

/* One look at every GPU of the set; NOT_FOUND where there is nothing to deliver. */
static ret deliver(struct event_set *set, struct event_data *out)
{
    u64 best = 0;
    struct state *state;
    ret code = begin("nvmlEventSetWait_v2", NULL, NULL, &state);
    for (u32 at = 0; !code && at < set->gpus; at++) {
        struct event found = oldest(set, find(state, set->registered[at].handle), set->registered[at].types);
        if (!found.sequence || (best && found.sequence > best))
            continue;
        best = found.sequence;
        *out = (struct event_data){set->registered[at].handle, found.type, found.data, ~0u, ~0u};
    }
    if (best)
        set->after = best;
    return end(code ? code : best ? OK : NOT_FOUND);
}

EXPORT ret nvmlEventSetWait_v2(struct event_set *set, struct event_data *out, u32 timeout_ms)
{
    for (double until = now() + timeout_ms / 1e3;; nap(100)) {
        ret code = deliver(set, out);
        if (code != NOT_FOUND || now() >= until)
            return code == NOT_FOUND ? TIMEOUT : code;
    }
}

EXPORT ret nvmlEventSetFree(struct event_set *set)
{
    free(set);
    return OK;
}
