/* GPU performance monitoring: activity between two samples, as NVML gives it from Hopper on. */
#include "call.h"

#include <stdlib.h>

struct support {
    u32 version, supported;
};

EXPORT ret nvmlGpmQueryDeviceSupport(device handle, struct support *out)
{
    u64 percent[4];
    ret code = gpu_numbers(__func__, handle, GPM, percent);
    out->supported = code == OK;
    return code == NOT_SUPPORTED ? OK : code;
}

/* A sample is a reading of the four percentages; real ones are counters, whose difference is told. */
struct sample {
    u64 percent[4];
};

EXPORT ret nvmlGpmSampleAlloc(struct sample **out)
{
    *out = calloc(1, sizeof **out);
    return *out ? OK : UNKNOWN;
}

EXPORT ret nvmlGpmSampleFree(struct sample *sample)
{
    free(sample);
    return OK;
}

EXPORT ret nvmlGpmSampleGet(device handle, struct sample *sample)
{
    return gpu_numbers(__func__, handle, GPM, sample->percent);
}

struct metric {
    u32 id;
    ret code;
    double value;
    const char *names[3];
};

struct metrics {
    u32 version, count;
    struct sample *before, *after;
    struct metric metric[];
};

EXPORT ret nvmlGpmMetricsGet(struct metrics *out)
{
    if (out->version != 1 || !out->before || !out->after)
        return INVALID_ARGUMENT;
    for (u32 at = 0; at < out->count; at++) {
        struct metric *metric = &out->metric[at];
        int place = metric->id == 1 ? 0 : metric->id == 2 ? 1 : metric->id == 5 ? 2 : metric->id == 10 ? 3 : -1;
        metric->code = place < 0 ? NOT_SUPPORTED : OK;
        metric->value = place < 0 ? 0 : (double)out->after->percent[place];
    }
    return OK;
}
