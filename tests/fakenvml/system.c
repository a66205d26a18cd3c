/* Opening and closing, the host, and the way to handles. */
#include "call.h"

#include <string.h>

static unsigned int users;

EXPORT ret nvmlInitWithFlags(u32 flags)
{
    static bool mismatched;
    struct state *state;
    ret code = begin(__func__, NULL, NULL, &state);
    (void)flags;
    if (!code)
        code = (ret)state->host.cell[INIT].number[0];
    /* The library stays mapped: a process that met another driver must be started anew. */
    mismatched |= code == LIB_RM_VERSION_MISMATCH;
    code = mismatched ? LIB_RM_VERSION_MISMATCH : code;
    if (!code) {
        initialised = true;
        users++;
    }
    note(code ? "init failed" : "init");
    return end(code);
}

EXPORT ret nvmlInit_v2(void)
{
    return nvmlInitWithFlags(0);
}

EXPORT ret nvmlShutdown(void)
{
    ret code = begin(__func__, NULL, NULL, NULL);
    if (!code && !initialised)
        code = UNINITIALIZED;
    if (!code && !--users)
        initialised = false;
    note("shutdown");
    return end(code);
}

EXPORT const char *nvmlErrorString(ret code)
{
    return code == OK ? "Success" : "stand-in error";
}

static ret host_cell(const char *call, enum key key, bool needs_init, struct cell *cell)
{
    struct state *state;
    ret code = begin(call, NULL, NULL, &state);
    if (!code && needs_init && !initialised)
        code = UNINITIALIZED;
    *cell = state->host.cell[key];
    return end(code ? code : cell->code);
}

EXPORT ret nvmlSystemGetDriverVersion(char *out, u32 size)
{
    struct cell cell;
    ret code = host_cell(__func__, DRIVER_VERSION, true, &cell);
    return code ? code : put(cell.text, out, size);
}

EXPORT ret nvmlSystemGetNVMLVersion(char *out, u32 size)
{
    struct cell cell;
    ret code = host_cell(__func__, NVML_VERSION, false, &cell);
    return code ? code : put(cell.text, out, size);
}

EXPORT ret nvmlSystemGetCudaDriverVersion(int *out)
{
    struct cell cell;
    ret code = host_cell(__func__, CUDA_VERSION, false, &cell);
    *out = (int)cell.number[0];
    return code;
}

EXPORT ret nvmlSystemGetCudaDriverVersion_v2(int *out)
{
    struct cell cell;
    ret code = host_cell(__func__, CUDA_VERSION, false, &cell);
    *out = (int)cell.number[0];
    return code;
}

EXPORT ret nvmlSystemGetConfComputeState(u32 out[3])
{
    struct cell cell;
    ret code = host_cell(__func__, CONF_COMPUTE, true, &cell);
    for (int at = 0; !code && at < 3; at++)
        out[at] = (u32)cell.number[at];
    return code;
}

EXPORT ret nvmlDeviceGetCount_v2(u32 *out)
{
    struct state *state;
    ret code = begin(__func__, NULL, NULL, &state);
    *out = state->gpus;
    return end(code ? code : initialised ? OK : UNINITIALIZED);
}

static device intern(const char *uuid)
{
    static char handles[4 * MAX_GPUS][UUID_SIZE];
    for (size_t at = 0; at < sizeof handles / sizeof *handles; at++) {
        if (!*handles[at])
            strcpy(handles[at], uuid);
        if (!strcmp(handles[at], uuid))
            return handles[at];
    }
    return NULL;
}

/* A rule for opening one GPU stands in its section, so the call begins once its handle is known. */
static ret open_handle(const char *call, device handle, device *out)
{
    struct section *gpu;
    ret code = begin_gpu(call, handle, true, &gpu);
    if (!code)
        *out = handle;
    return end(code);
}

EXPORT ret nvmlDeviceGetHandleByIndex_v2(u32 index, device *out)
{
    struct state *state = state_lock();
    device handle = index < state->gpus ? intern(state->gpu[index].cell[UUID].text) : NULL;
    state_unlock();
    return handle ? open_handle(__func__, handle, out) : INVALID_ARGUMENT;
}

static ret by_text(const char *call, enum key key, const char *text, device *out)
{
    device handle = NULL;
    struct state *state = state_lock();
    for (u32 at = 0; at < state->gpus; at++)
        if (!strcmp(state->gpu[at].cell[key].text, text))
            handle = intern(state->gpu[at].cell[UUID].text);
    state_unlock();
    return handle ? open_handle(call, handle, out) : NOT_FOUND;
}

EXPORT ret nvmlDeviceGetHandleByUUID(const char *uuid, device *out)
{
    return by_text(__func__, UUID, uuid, out);
}

EXPORT ret nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, device *out)
{
    return by_text(__func__, PCI_BUS_ID, bus_id, out);
}

EXPORT ret nvmlDeviceGetMaxMigDeviceCount(device handle, u32 *out)
{
    struct section *gpu;
    ret code = begin_gpu(__func__, handle, false, &gpu);
    if (!code)
        code = gpu->cell[MIG_MODE].code;
    *out = code ? 0 : 7;
    return end(code);
}

EXPORT ret nvmlDeviceGetMigDeviceHandleByIndex(device handle, u32 index, device *out)
{
    struct section *gpu;
    ret code = begin_gpu(__func__, handle, false, &gpu);
    if (!code && index >= gpu->migs)
        code = NOT_FOUND;
    if (!code)
        *out = intern(gpu->mig[index].uuid);
    return end(code);
}
