/* Reads the state file. A file with a mistake in it changes nothing: the state before it stays. */
#include "state.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct state current, incoming;
static struct stat seen;
static uint64_t looked_ns;

/* Calls come in bursts of hundreds: look at the file again only after this long. */
enum { LOOK_EVERY_NS = 5000000 };

static const struct {
    const char *name;
    int numbers;
} keys[KEYS] = {
#define KEY_ROW(id, name, numbers) [id] = {name, numbers},
    SYSTEM_KEY_LIST(KEY_ROW) GPU_KEY_LIST(KEY_ROW)};

static const struct {
    const char *name;
    int code;
} codes[] = {
    {"OK", OK},
    {"UNINITIALIZED", UNINITIALIZED},
    {"INVALID_ARGUMENT", INVALID_ARGUMENT},
    {"NOT_SUPPORTED", NOT_SUPPORTED},
    {"NO_PERMISSION", 4},
    {"NOT_FOUND", NOT_FOUND},
    {"INSUFFICIENT_SIZE", INSUFFICIENT_SIZE},
    {"DRIVER_NOT_LOADED", 9},
    {"TIMEOUT", TIMEOUT},
    {"FUNCTION_NOT_FOUND", 13},
    {"CORRUPTED_INFOROM", 14},
    {"GPU_IS_LOST", GPU_IS_LOST},
    {"RESET_REQUIRED", RESET_REQUIRED},
    {"OPERATING_SYSTEM", 17},
    {"LIB_RM_VERSION_MISMATCH", LIB_RM_VERSION_MISMATCH},
    {"NO_DATA", 21},
    {"NOT_READY", 27},
    {"UNKNOWN", UNKNOWN},
};

/* "NOT_SUPPORTED", or "error 1234" for a code without a name here; -1 where it is neither. */
static int code_of(const char *text)
{
    int code, end = 0;
    for (size_t at = 0; at < sizeof codes / sizeof *codes; at++)
        if (!strcmp(text, codes[at].name))
            return codes[at].code;
    return sscanf(text, "error %d%n", &code, &end) == 1 && !text[end] && code > 0 ? code : -1;
}

static bool read_cell(struct section *section, enum key key, const char *text)
{
    struct cell *cell = &section->cell[key];
    int code = code_of(text);
    if (key == INIT)
        cell->number[0] = (uint64_t)code;
    cell->code = code > OK && key != INIT ? code : OK;
    if (code >= OK)
        return true;
    if (!keys[key].numbers)
        return *text && (size_t)snprintf(cell->text, sizeof cell->text, "%s", text) < sizeof cell->text;
    for (int at = 0; at < keys[key].numbers; at++) {
        char *end;
        cell->number[at] = strtoull(text, &end, 0);
        if (end == text || (*end && *end != ' '))
            return false;
        text = end;
    }
    return !*text;
}

/* process TYPE PID MEMORY|- GPU_INSTANCE|- COMPUTE_INSTANCE|- NAME */
static bool read_process(struct section *section, const char *text)
{
    struct process *process = &section->process[section->processes];
    char type[16], memory[24], gpu[12], compute[12];
    if (section->processes == MAX_PROCESSES)
        return false;
    if (sscanf(text, "%15s %u %23s %11s %11s %127[^\n]", type, &process->pid, memory, gpu, compute, process->name) != 6)
        return false;
    if (strcmp(type, "compute") && strcmp(type, "graphics") && strcmp(type, "mps"))
        return false;
    process->type = type[0];
    process->memory = strcmp(memory, "-") ? strtoull(memory, NULL, 0) : UINT64_MAX;
    process->gpu_instance = strcmp(gpu, "-") ? (unsigned int)strtoul(gpu, NULL, 0) : UINT32_MAX;
    process->compute_instance = strcmp(compute, "-") ? (unsigned int)strtoul(compute, NULL, 0) : UINT32_MAX;
    section->processes++;
    return true;
}

/* call NAME sleep SECONDS | call NAME CODE [times N] */
static bool read_rule(struct section *section, const char *text)
{
    struct rule *rule = &section->rule[section->rules];
    char answer[64];
    int end = 0;
    if (section->rules == MAX_RULES || sscanf(text, "%63s %n", rule->call, &end) != 1 || !text[end])
        return false;
    section->rules++;
    snprintf(answer, sizeof answer, "%s", text + end);
    if (sscanf(answer, "sleep %lf", &rule->seconds) == 1)
        return rule->seconds >= 0;
    char *times = strstr(answer, " times ");
    if (times) {
        *times = 0;
        rule->times = (unsigned int)strtoul(times + strlen(" times "), NULL, 10);
        if (!rule->times)
            return false;
    }
    rule->code = code_of(answer);
    return rule->code > OK;
}

/* event SEQUENCE TYPE DATA */
static bool read_event(struct section *section, const char *text)
{
    struct event *event = &section->event[section->events];
    unsigned long long sequence, type, data;
    if (section->events == MAX_EVENTS || sscanf(text, "%llu %llu %llu", &sequence, &type, &data) != 3)
        return false;
    *event = (struct event){sequence, type, data};
    section->events++;
    return true;
}

/* mig UUID GPU_INSTANCE COMPUTE_INSTANCE PROFILE */
static bool read_mig(struct section *section, const char *text)
{
    struct mig *mig = &section->mig[section->migs];
    if (section->migs == MAX_MIGS)
        return false;
    section->migs++;
    return sscanf(text, "%95s %u %u %31s", mig->uuid, &mig->gpu_instance, &mig->compute_instance, mig->profile) == 4;
}

/* job PID START_US MS MEMORY UTILIZATION RUNNING */
static bool read_job(struct section *section, const char *text)
{
    struct job *job = &section->job[section->jobs];
    unsigned long long start_us, time_ms, memory;
    if (section->jobs == MAX_JOBS || sscanf(text, "%u %llu %llu %llu %u %u", &job->pid, &start_us, &time_ms, &memory,
                                            &job->utilization, &job->running) != 6)
        return false;
    job->start_us = start_us;
    job->time_ms = time_ms;
    job->memory = memory;
    section->jobs++;
    return true;
}

/* field ID VALUE */
static bool read_field(struct section *section, const char *text)
{
    struct value *field = &section->value[section->values];
    unsigned long long value;
    if (section->values == MAX_FIELDS || sscanf(text, "%u %llu", &field->id, &value) != 2)
        return false;
    field->value = value;
    section->values++;
    return true;
}

static bool read_line(struct section *section, const char *key, const char *text)
{
    bool host = section == &incoming.host;
    if (!strcmp(key, "call"))
        return read_rule(section, text);
    if (!host && !strcmp(key, "process"))
        return read_process(section, text);
    if (!host && !strcmp(key, "event"))
        return read_event(section, text);
    if (!host && !strcmp(key, "mig"))
        return read_mig(section, text);
    if (!host && !strcmp(key, "job"))
        return read_job(section, text);
    if (!host && !strcmp(key, "field"))
        return read_field(section, text);
    for (int at = host ? 0 : SYSTEM_KEYS; at < (host ? (int)SYSTEM_KEYS : (int)KEYS); at++)
        if (!strcmp(key, keys[at].name))
            return read_cell(section, (enum key)at, text);
    return false;
}

static void clear(struct section *section)
{
    memset(section, 0, sizeof *section);
    for (int at = 0; at < KEYS; at++)
        section->cell[at].code = at == STATE || at == INIT ? OK : NOT_SUPPORTED;
}

/* Returns 0, or the number of the first wrong line; an empty file is one that is being written. */
static unsigned int parse(FILE *file)
{
    struct section *section = &incoming.host;
    char line[512];
    unsigned int wrong = 1;
    clear(section);
    incoming.gpus = 0;
    for (unsigned int number = 1; fgets(line, sizeof line, file); number++) {
        char *newline = strchr(line, '\n'), *key = line + strspn(line, " \t"), *text;
        if (!newline && !feof(file))
            return number;
        key[strcspn(key, "\r\n")] = 0;
        if (!*key || *key == '#')
            continue;
        text = key + strcspn(key, " ");
        if (*text)
            *text++ = 0;
        text += strspn(text, " ");
        if (!strcmp(key, "gpu") && !*text && incoming.gpus < MAX_GPUS)
            clear(section = &incoming.gpu[incoming.gpus++]);
        else if (!read_line(section, key, text))
            return number;
        wrong = 0;
    }
    return wrong;
}

static void refresh(void)
{
    static bool complained;
    const char *path = getenv("FAKENVML_STATE");
    struct timespec now;
    struct stat found;
    clock_gettime(CLOCK_MONOTONIC, &now);
    uint64_t now_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    if (looked_ns && now_ns - looked_ns < LOOK_EVERY_NS)
        return;
    if (!looked_ns)
        clear(&current.host), current.host.cell[INIT].number[0] = UNKNOWN;
    looked_ns = now_ns;
    FILE *file = path ? fopen(path, "re") : NULL;
    if (!file || fstat(fileno(file), &found)) {
        if (!complained)
            fprintf(stderr, "fakenvml: cannot read FAKENVML_STATE=%s\n", path ? path : "");
        complained = true;
    } else if (found.st_mtim.tv_sec != seen.st_mtim.tv_sec || found.st_mtim.tv_nsec != seen.st_mtim.tv_nsec ||
               found.st_size != seen.st_size || found.st_ino != seen.st_ino) {
        seen = found;
        unsigned int wrong = parse(file);
        if (wrong)
            fprintf(stderr, "fakenvml: %s:%u: not understood; the state before stays\n", path, wrong);
        else
            current = incoming;
    }
    if (file)
        fclose(file);
}

struct state *state_lock(void)
{
    pthread_mutex_lock(&mutex);
    refresh();
    return &current;
}

struct state *state_current(void)
{
    return &current;
}

void state_unlock(void)
{
    pthread_mutex_unlock(&mutex);
}

struct rule *state_rule(struct section *section, const char *call)
{
    for (unsigned int at = 0; at < section->rules; at++) {
        struct rule *rule = &section->rule[at];
        if (strcmp(rule->call, "*") && strcmp(rule->call, call))
            continue;
        if (rule->times == UINT32_MAX)
            continue; /* used up */
        if (rule->times && !--rule->times)
            rule->times = UINT32_MAX;
        return rule;
    }
    return NULL;
}
