/* What one GPU says: identity, settings, readings. */
#include "call.h"

#include <stdio.h>
#include <string.h>

/* A MIG device answers for its name and UUID only. */
static ret mig_text(device handle, bool name, char *out, u32 size)
{
    char text[2 * UUID_SIZE + 32];
    struct state *state = state_lock();
    ret code = NOT_FOUND;
    for (u32 at = 0; at < state->gpus; at++)
        for (u32 row = 0; row < state->gpu[at].migs; row++) {
            struct mig *mig = &state->gpu[at].mig[row];
            if (strcmp(mig->uuid, handle))
                continue;
            snprintf(text, sizeof text, "%s MIG %s", state->gpu[at].cell[NAME].text, mig->profile);
            code = put(name ? text : mig->uuid, out, size);
        }
    return end(code);
}

static bool is_mig(device handle)
{
    return handle && !strncmp(handle, "MIG-", 4);
}

EXPORT ret nvmlDeviceGetName(device handle, char *out, u32 size)
{
    return is_mig(handle) ? mig_text(handle, true, out, size) : gpu_text(__func__, handle, NAME, out, size);
}

EXPORT ret nvmlDeviceGetUUID(device handle, char *out, u32 size)
{
    return is_mig(handle) ? mig_text(handle, false, out, size) : gpu_text(__func__, handle, UUID, out, size);
}

EXPORT ret nvmlDeviceGetSerial(device handle, char *out, u32 size)
{
    return gpu_text(__func__, handle, SERIAL, out, size);
}

EXPORT ret nvmlDeviceGetVbiosVersion(device handle, char *out, u32 size)
{
    return gpu_text(__func__, handle, VBIOS, out, size);
}

EXPORT ret nvmlDeviceGetInforomImageVersion(device handle, char *out, u32 size)
{
    return gpu_text(__func__, handle, INFOROM, out, size);
}

EXPORT ret nvmlDeviceGetGspFirmwareVersion(device handle, char *out)
{
    return gpu_text(__func__, handle, GSP_FIRMWARE, out, 64);
}

struct pci {
    char legacy_bus_id[16];
    u32 domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
};

EXPORT ret nvmlDeviceGetPciInfo_v3(device handle, struct pci *out)
{
    struct section *gpu;
    ret code = begin_gpu(__func__, handle, true, &gpu);
    if (!code && !(code = gpu->cell[PCI_BUS_ID].code)) {
        const char *bus_id = gpu->cell[PCI_BUS_ID].text;
        memset(out, 0, sizeof *out);
        sscanf(bus_id, "%x:%x:%x", &out->domain, &out->bus, &out->device);
        out->pci_device_id = (u32)gpu->cell[PCI_ID].number[0];
        out->pci_subsystem_id = (u32)gpu->cell[PCI_ID].number[1];
        put(bus_id + 4, out->legacy_bus_id, sizeof out->legacy_bus_id);
        put(bus_id, out->bus_id, sizeof out->bus_id);
    }
    return end(code);
}

EXPORT ret nvmlDeviceGetMinorNumber(device handle, u32 *out)
{
    return gpu_u32(__func__, handle, MINOR, 0, out);
}

EXPORT ret nvmlDeviceGetIndex(device handle, u32 *out)
{
    struct section *gpu;
    ret code = begin_gpu(__func__, handle, true, &gpu);
    struct state *state = state_current();
    if (!code)
        *out = (u32)(gpu - state->gpu);
    return end(code);
}

EXPORT ret nvmlDeviceGetEccMode(device handle, u32 *mode, u32 *pending)
{
    return gpu_pair(__func__, handle, ECC_MODE, mode, pending);
}

EXPORT ret nvmlDeviceGetMigMode(device handle, u32 *mode, u32 *pending)
{
    return gpu_pair(__func__, handle, MIG_MODE, mode, pending);
}

EXPORT ret nvmlDeviceGetPersistenceMode(device handle, u32 *out)
{
    return gpu_u32(__func__, handle, PERSISTENCE, 0, out);
}

EXPORT ret nvmlDeviceGetComputeMode(device handle, u32 *out)
{
    return gpu_u32(__func__, handle, COMPUTE_MODE, 0, out);
}

EXPORT ret nvmlDeviceGetAccountingMode(device handle, u32 *out)
{
    return gpu_u32(__func__, handle, ACCOUNTING, 0, out);
}

EXPORT ret nvmlDeviceGetUtilizationRates(device handle, u32 out[2])
{
    return gpu_pair(__func__, handle, UTILIZATION, &out[0], &out[1]);
}

/* Version 1 counts what the driver reserves as used. */
EXPORT ret nvmlDeviceGetMemoryInfo(device handle, u64 out[3])
{
    u64 memory[4];
    ret code = gpu_numbers(__func__, handle, MEMORY, memory);
    if (!code) {
        out[0] = memory[0];
        out[1] = memory[0] - memory[1] - memory[2];
        out[2] = memory[1] + memory[2];
    }
    return code;
}

struct memory_v2 {
    u32 version;
    u64 total, reserved, free, used;
};

EXPORT ret nvmlDeviceGetMemoryInfo_v2(device handle, struct memory_v2 *out)
{
    u64 memory[4];
    ret code = gpu_numbers(__func__, handle, MEMORY, memory);
    if (!code && out->version != (2u << 24 | sizeof *out))
        code = ARGUMENT_VERSION_MISMATCH;
    if (!code)
        *out = (struct memory_v2){out->version, memory[0], memory[1], memory[0] - memory[1] - memory[2], memory[2]};
    return code;
}

EXPORT ret nvmlDeviceGetPowerUsage(device handle, u32 *out)
{
    return gpu_u32(__func__, handle, POWER, 0, out);
}

EXPORT ret nvmlDeviceGetEnforcedPowerLimit(device handle, u32 *out)
{
    return gpu_u32(__func__, handle, POWER_LIMIT, 0, out);
}

EXPORT ret nvmlDeviceGetPowerManagementLimit(device handle, u32 *out)
{
    return gpu_u32(__func__, handle, POWER_LIMIT, 0, out);
}

EXPORT ret nvmlDeviceGetTotalEnergyConsumption(device handle, u64 *out)
{
    return gpu_u64(__func__, handle, ENERGY, 0, out);
}

EXPORT ret nvmlDeviceGetTemperature(device handle, u32 sensor, u32 *out)
{
    return sensor ? INVALID_ARGUMENT : gpu_u32(__func__, handle, TEMPERATURE, 0, out);
}

struct temperature {
    u32 version, sensor;
    int celsius;
};

EXPORT ret nvmlDeviceGetTemperatureV(device handle, struct temperature *out)
{
    if (out->version != (1u << 24 | sizeof *out))
        return ARGUMENT_VERSION_MISMATCH;
    return out->sensor ? INVALID_ARGUMENT : gpu_u32(__func__, handle, TEMPERATURE, 0, (u32 *)&out->celsius);
}

static ret media(const char *call, device handle, enum key key, u32 *out, u32 *period)
{
    *period = 167000;
    return gpu_u32(call, handle, key, 0, out);
}

EXPORT ret nvmlDeviceGetEncoderUtilization(device handle, u32 *out, u32 *period)
{
    return media(__func__, handle, ENCODER, out, period);
}

EXPORT ret nvmlDeviceGetDecoderUtilization(device handle, u32 *out, u32 *period)
{
    return media(__func__, handle, DECODER, out, period);
}

EXPORT ret nvmlDeviceGetFanSpeed(device handle, u32 *out)
{
    return gpu_u32(__func__, handle, FAN, 0, out);
}

EXPORT ret nvmlDeviceGetClockInfo(device handle, u32 type, u32 *out)
{
    u32 clocks[2];
    ret code = gpu_pair(__func__, handle, CLOCKS, &clocks[0], &clocks[1]);
    if (!code)
        *out = clocks[type == 2]; /* graphics and SM run together; 2 is memory */
    return code;
}

EXPORT ret nvmlDeviceGetCurrentClocksEventReasons(device handle, u64 *out)
{
    return gpu_u64(__func__, handle, THROTTLE, 0, out);
}

EXPORT ret nvmlDeviceGetCurrentClocksThrottleReasons(device handle, u64 *out)
{
    return gpu_u64(__func__, handle, THROTTLE, 0, out);
}

EXPORT ret nvmlDeviceGetTotalEccErrors(device handle, u32 uncorrected, u32 aggregate, u64 *out)
{
    (void)aggregate;
    return gpu_u64(__func__, handle, ECC, uncorrected ? 1 : 0, out);
}

EXPORT ret nvmlDeviceGetRemappedRows(device handle, u32 *correctable, u32 *uncorrectable, u32 *pending, u32 *failure)
{
    u64 rows[4];
    ret code = gpu_numbers(__func__, handle, REMAPPED, rows);
    if (!code) {
        *correctable = (u32)rows[0];
        *uncorrectable = (u32)rows[1];
        *pending = (u32)rows[2];
        *failure = (u32)rows[3];
    }
    return code;
}

EXPORT ret nvmlDeviceGetPcieReplayCounter(device handle, u32 *out)
{
    return gpu_u32(__func__, handle, REPLAYS, 0, out);
}

struct field {
    u32 id, scope;
    int64_t timestamp, latency;
    u32 type; /* 1: unsigned int */
    ret code;
    u64 value;
};

EXPORT ret nvmlDeviceGetFieldValues(device handle, int count, struct field *fields)
{
    struct section *gpu;
    ret code = begin_gpu(__func__, handle, true, &gpu);
    for (int at = 0; !code && at < count; at++) {
        enum key key = fields[at].id == 82 ? MEMORY_TEMPERATURE : fields[at].id == 230 ? RECOVERY : STATE;
        fields[at].type = 1;
        fields[at].code = key == STATE ? INVALID_ARGUMENT : gpu->cell[key].code;
        fields[at].value = gpu->cell[key].number[0];
        for (u32 row = 0; row < gpu->values; row++)
            if (gpu->value[row].id == fields[at].id) {
                fields[at].type = 3; /* unsigned long long */
                fields[at].code = OK;
                fields[at].value = gpu->value[row].value;
            }
    }
    return end(code);
}

EXPORT ret nvmlDeviceGetSupportedEventTypes(device handle, u64 *out)
{
    return gpu_u64(__func__, handle, EVENTS, 0, out);
}
