/* The state file of the stand-in: what it says, and how the exported functions ask for it. */
#ifndef FAKENVML_STATE_H
#define FAKENVML_STATE_H

#include <stdint.h>

enum { MAX_GPUS = 16, MAX_PROCESSES = 64, MAX_RULES = 32, MAX_EVENTS = 64, MAX_MIGS = 8, MAX_JOBS = 64, MAX_FIELDS = 32, UUID_SIZE = 96 };

/* NVML's return codes, those that the stand-in itself gives. */
enum {
    OK = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    TIMEOUT = 10,
    GPU_IS_LOST = 15,
    RESET_REQUIRED = 16,
    LIB_RM_VERSION_MISMATCH = 18,
    ARGUMENT_VERSION_MISMATCH = 25,
    UNKNOWN = 999
};

/* Every key: its name in the file, and how many numbers it holds (0: text to the end of the line).
   Keys of the host come before SYSTEM_KEYS, those of a GPU from there on. Units are NVML's own. */
#define SYSTEM_KEY_LIST(X)                                                                                             \
    X(DRIVER_VERSION, "driver_version", 0)                                                                             \
    X(NVML_VERSION, "nvml_version", 0)                                                                                 \
    X(CUDA_VERSION, "cuda_version", 1)                                                                                 \
    X(INIT, "init", 1)                 /* a code or its name: what nvmlInit answers */                                 \
    X(CONF_COMPUTE, "conf_compute", 3) /* environment, feature, devtools mode */
#define GPU_KEY_LIST(X)                                                                                                \
    X(NAME, "name", 0)                                                                                                 \
    X(UUID, "uuid", 0)                                                                                                 \
    X(SERIAL, "serial", 0)                                                                                             \
    X(VBIOS, "vbios", 0)                                                                                               \
    X(INFOROM, "inforom", 0)                                                                                           \
    X(GSP_FIRMWARE, "gsp_firmware", 0)                                                                                 \
    X(PCI_BUS_ID, "pci_bus_id", 0)                                                                                     \
    X(STATE, "state", 0) /* ok, lost, reset_required */                                                                \
    X(PCI_ID, "pci_id", 2) /* device, subsystem */                                                                     \
    X(MINOR, "minor", 1)                                                                                               \
    X(UTILIZATION, "utilization", 2) /* %: GPU, memory */                                                              \
    X(MEMORY, "memory", 3)           /* bytes: total, reserved, used */                                                \
    X(POWER, "power", 1)             /* mW */                                                                          \
    X(POWER_LIMIT, "power_limit", 1) /* mW */                                                                          \
    X(ENERGY, "energy", 1)           /* mJ */                                                                          \
    X(TEMPERATURE, "temperature", 1) /* degrees Celsius */                                                             \
    X(MEMORY_TEMPERATURE, "memory_temperature", 1)                                                                     \
    X(ENCODER, "encoder", 1)   /* % */                                                                                 \
    X(DECODER, "decoder", 1)   /* % */                                                                                 \
    X(FAN, "fan", 1)           /* % */                                                                                 \
    X(CLOCKS, "clocks", 2)     /* MHz: SM, memory */                                                                   \
    X(THROTTLE, "throttle", 1) /* bits */                                                                              \
    X(ECC, "ecc", 2)           /* volatile totals: corrected, uncorrected */                                           \
    X(ECC_MODE, "ecc_mode", 2) /* current, pending */                                                                  \
    X(MIG_MODE, "mig_mode", 2) /* current, pending */                                                                  \
    X(REMAPPED, "remapped", 4) /* correctable, uncorrectable, pending, failure */                                      \
    X(REPLAYS, "pcie_replays", 1)                                                                                      \
    X(RECOVERY, "recovery_action", 1)                                                                                  \
    X(PERSISTENCE, "persistence_mode", 1)                                                                              \
    X(COMPUTE_MODE, "compute_mode", 1)                                                                                 \
    X(ACCOUNTING, "accounting_mode", 1)                                                                                \
    X(GPM, "gpm", 4) /* %: graphics, SM, tensor, DRAM activity */                                                       \
    X(EVENTS, "events", 1) /* event types that the GPU supports, bits */

#define KEY_ENUM(id, name, numbers) id,
enum key { SYSTEM_KEY_LIST(KEY_ENUM) SYSTEM_KEYS, BEFORE_GPU_KEYS = SYSTEM_KEYS - 1, GPU_KEY_LIST(KEY_ENUM) KEYS };

/* One value: code says NVML's answer, numbers or text what comes with OK. */
struct cell {
    int code;
    uint64_t number[4];
    char text[UUID_SIZE];
};

struct process {
    int type; /* 'c' compute, 'g' graphics, 'm' MPS */
    unsigned int pid, gpu_instance, compute_instance;
    uint64_t memory; /* UINT64_MAX: not available */
    char name[128];  /* "-": NVML does not find it */
};

struct rule {
    char call[64]; /* an exported name, or "*" */
    int code;      /* 0: sleep instead */
    double seconds;
    unsigned int times; /* 0: always */
};

struct event {
    uint64_t sequence, type, data;
};

struct mig {
    char uuid[UUID_SIZE], profile[32];
    unsigned int gpu_instance, compute_instance;
};

/* What accounting remembers of a process: start in microseconds since 1970, time in ms (0 while it runs). */
struct job {
    unsigned int pid, utilization, running;
    uint64_t start_us, time_ms, memory;
};

/* A value of nvmlDeviceGetFieldValues that has no key of its own. */
struct value {
    unsigned int id;
    uint64_t value;
};

/* One section: the host (section 0) or one GPU. */
struct section {
    struct cell cell[KEYS];
    struct process process[MAX_PROCESSES];
    struct rule rule[MAX_RULES];
    struct event event[MAX_EVENTS];
    struct mig mig[MAX_MIGS];
    struct job job[MAX_JOBS];
    struct value value[MAX_FIELDS];
    unsigned int processes, rules, events, migs, jobs, values;
};

struct state {
    struct section host, gpu[MAX_GPUS];
    unsigned int gpus;
};

/* Take the lock and read the file again if it changed; every lock needs its unlock. Never NULL. */
struct state *state_lock(void);
void state_unlock(void);

/* The state again, for who holds the lock. */
struct state *state_current(void);

/* The rule that holds for a call now, or NULL; a rule with "times" is used up by it. Lock held. */
struct rule *state_rule(struct section *section, const char *call);

#endif
