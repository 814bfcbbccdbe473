/* A stand-in for NVIDIA's libnvidia-ml.so.1, to be put under the real pynvml on a machine without a GPU.
 *
 * It holds no state of its own but the reference count of nvmlInit and one name per handle: every call reads
 * the file named by GPUSPAWNER_TEST_GPUS again, so a test drives a running Hub by replacing that file. The
 * format is described in tests/standins/gpustate.py, which writes it; tests/standins/gpu_hook.py reads the
 * same file, so that the driver and the container toolkit always tell one story.
 *
 * Signatures and struct sizes follow nvidia-ml-py 13. A symbol that is missing here is what pynvml reports as
 * NVMLError_FunctionNotFound, just as with an old driver.
 */
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, TIMED_OUT = 10, GPU_IS_LOST = 15, RESET_REQUIRED = 16,
    VERSION_MISMATCH = 18, ARGUMENT_VERSION_MISMATCH = 25, UNKNOWN = 999
};

#define EXPORT __attribute__((visibility("default")))
#define MAX_CARDS 64
#define MAX_PROCESSES 256
#define MAX_XIDS 64
#define NONE (~0ULL) /* the value "-" in the file: this card does not report it */

typedef unsigned long long u64;
typedef struct { char uuid[96]; } Handle; /* what an nvmlDevice_t points to: a name, looked up anew each time */

typedef struct {
    char uuid[96], name[96], pci[32];
    u64 memory, used, reserved, minor, utilisation, memory_utilisation, temperature, power, power_limit;
    int lost, reset;
} Card;

typedef struct { char uuid[96], kind; unsigned pid; u64 memory; } Process;

typedef struct { char uuid[96]; u64 serial, number; } XidLine;

typedef struct {
    char driver[80];
    int cuda, init_error, cards, processes, xids;
    long delay_ms;
    Card card[MAX_CARDS];
    Process process[MAX_PROCESSES];
    XidLine xid[MAX_XIDS];
} State;

typedef struct { unsigned pid; u64 memory; unsigned gpu_instance, compute_instance; } ProcessInfo; /* 24 bytes */
typedef struct { u64 total, free, used; } Memory;
typedef struct { unsigned version; u64 total, reserved, free, used; } MemoryV2; /* 40 bytes */
typedef struct { unsigned gpu, memory; } Utilization;
typedef struct { unsigned version, sensor; int temperature; } TemperatureV1; /* 12 bytes */
typedef struct {
    char bus_id_legacy[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
} PciInfo; /* 68 bytes */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Handle handles[MAX_CARDS];
static int handle_count, references;

/* ---- the state file ------------------------------------------------------------------------------------ */

static u64 number(const char *text) { return strcmp(text, "-") ? strtoull(text, NULL, 10) : NONE; }

static void copy(char *target, size_t size, const char *text) { snprintf(target, size, "%s", text); }

static void read_card(State *state, char *fields) {
    if (state->cards == MAX_CARDS) return;
    Card *card = &state->card[state->cards++];
    memset(card, 0, sizeof *card);
    char *rest = fields, *field;
    while ((field = strtok_r(NULL, "\t", &rest))) {
        char *value = strchr(field, '=');
        if (!value) continue;
        *value++ = 0;
        if (!strcmp(field, "uuid")) copy(card->uuid, sizeof card->uuid, value);
        else if (!strcmp(field, "name")) copy(card->name, sizeof card->name, value);
        else if (!strcmp(field, "pci")) copy(card->pci, sizeof card->pci, value);
        else if (!strcmp(field, "memory")) card->memory = number(value);
        else if (!strcmp(field, "used")) card->used = number(value);
        else if (!strcmp(field, "reserved")) card->reserved = number(value);
        else if (!strcmp(field, "minor")) card->minor = number(value);
        else if (!strcmp(field, "utilisation")) card->utilisation = number(value);
        else if (!strcmp(field, "memory_utilisation")) card->memory_utilisation = number(value);
        else if (!strcmp(field, "temperature")) card->temperature = number(value);
        else if (!strcmp(field, "power")) card->power = number(value);
        else if (!strcmp(field, "power_limit")) card->power_limit = number(value);
        else if (!strcmp(field, "lost")) card->lost = atoi(value);
        else if (!strcmp(field, "reset")) card->reset = atoi(value);
    }
}

static void read_process(State *state, char *fields) {
    if (state->processes == MAX_PROCESSES) return;
    Process *process = &state->process[state->processes++];
    memset(process, 0, sizeof *process);
    char *rest = fields, *field;
    while ((field = strtok_r(NULL, "\t", &rest))) {
        char *value = strchr(field, '=');
        if (!value) continue;
        *value++ = 0;
        if (!strcmp(field, "uuid")) copy(process->uuid, sizeof process->uuid, value);
        else if (!strcmp(field, "kind")) process->kind = *value;
        else if (!strcmp(field, "pid")) process->pid = (unsigned)number(value);
        else if (!strcmp(field, "memory")) process->memory = number(value);
    }
}

static void read_xid(State *state, char *fields) {
    if (state->xids == MAX_XIDS) return;
    XidLine *xid = &state->xid[state->xids++];
    memset(xid, 0, sizeof *xid);
    char *rest = fields, *field;
    while ((field = strtok_r(NULL, "\t", &rest))) {
        char *value = strchr(field, '=');
        if (!value) continue;
        *value++ = 0;
        if (!strcmp(field, "uuid")) copy(xid->uuid, sizeof xid->uuid, value);
        else if (!strcmp(field, "serial")) xid->serial = number(value);
        else if (!strcmp(field, "number")) xid->number = number(value);
    }
}

/* Without its file the stand-in is a machine whose driver is not loaded. */
static int load(State *state) {
    memset(state, 0, offsetof(State, card));
    const char *path = getenv("GPUSPAWNER_TEST_GPUS");
    FILE *file = path ? fopen(path, "re") : NULL;
    if (!file) return DRIVER_NOT_LOADED;
    char line[1024];
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        char *fields = line, *word = strtok_r(NULL, "\t", &fields);
        if (!word || *word == '#') continue;
        if (!strcmp(word, "card")) { read_card(state, fields); continue; }
        if (!strcmp(word, "process")) { read_process(state, fields); continue; }
        if (!strcmp(word, "xid")) { read_xid(state, fields); continue; }
        char *value = strtok_r(NULL, "\t", &fields);
        if (!value) continue;
        if (!strcmp(word, "driver")) copy(state->driver, sizeof state->driver, value);
        else if (!strcmp(word, "cuda")) state->cuda = atoi(value);
        else if (!strcmp(word, "init_error")) state->init_error = atoi(value);
        else if (!strcmp(word, "delay_ms")) state->delay_ms = atol(value);
    }
    fclose(file);
    if (state->delay_ms > 0) {
        struct timespec wait = {state->delay_ms / 1000, (state->delay_ms % 1000) * 1000000};
        nanosleep(&wait, NULL);
    }
    return SUCCESS;
}

/* ---- what every call needs ----------------------------------------------------------------------------- */

static int begin(State *state) {
    int status = load(state);
    pthread_mutex_lock(&lock);
    int initialised = references > 0;
    pthread_mutex_unlock(&lock);
    return initialised ? status : UNINITIALIZED;
}

static int begin_card(State *state, const Handle *handle, Card **card) {
    int status = begin(state);
    if (status) return status;
    if (!handle) return INVALID_ARGUMENT;
    for (int i = 0; i < state->cards; i++) {
        if (strcmp(state->card[i].uuid, handle->uuid)) continue;
        *card = &state->card[i];
        return (*card)->lost ? GPU_IS_LOST : (*card)->reset ? RESET_REQUIRED : SUCCESS;
    }
    return GPU_IS_LOST; /* it was there when the handle was given out, and its line is gone since */
}

static int give_handle(const Card *card, Handle **handle) {
    if (card->lost) return GPU_IS_LOST;
    pthread_mutex_lock(&lock);
    int i = 0;
    while (i < handle_count && strcmp(handles[i].uuid, card->uuid)) i++;
    if (i == handle_count && i < MAX_CARDS) copy(handles[handle_count++].uuid, sizeof handles[0].uuid, card->uuid);
    pthread_mutex_unlock(&lock);
    if (i == MAX_CARDS) return UNKNOWN;
    *handle = &handles[i];
    return SUCCESS;
}

static int give_text(const char *text, char *target, unsigned size) {
    if (strlen(text) >= size) return INSUFFICIENT_SIZE;
    strcpy(target, text);
    return SUCCESS;
}

static int give_number(u64 value, unsigned *target) {
    if (value == NONE) return NOT_SUPPORTED;
    *target = (unsigned)value;
    return SUCCESS;
}

/* ---- library and system -------------------------------------------------------------------------------- */

EXPORT int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    State state;
    int status = load(&state);
    if (status || state.init_error) return status ? status : state.init_error;
    pthread_mutex_lock(&lock);
    references++;
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

EXPORT int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

EXPORT int nvmlShutdown(void) {
    pthread_mutex_lock(&lock);
    int status = references ? SUCCESS : UNINITIALIZED;
    if (references) references--;
    pthread_mutex_unlock(&lock);
    return status;
}

EXPORT const char *nvmlErrorString(int code) {
    switch (code) {
    case SUCCESS: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NO_PERMISSION: return "Insufficient Permissions";
    case NOT_FOUND: return "Not Found";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case TIMED_OUT: return "Timeout";
    case GPU_IS_LOST: return "GPU is lost";
    case RESET_REQUIRED: return "GPU requires reset";
    case VERSION_MISMATCH: return "Driver/library version mismatch";
    case ARGUMENT_VERSION_MISMATCH: return "Argument version mismatch";
    default: return "Unknown Error";
    }
}

EXPORT int nvmlSystemGetDriverVersion(char *version, unsigned size) {
    State state;
    int status = begin(&state);
    return status ? status : give_text(state.driver, version, size);
}

EXPORT int nvmlSystemGetNVMLVersion(char *version, unsigned size) {
    State state;
    int status = begin(&state);
    char text[96];
    snprintf(text, sizeof text, "%d.%s", state.cuda / 1000, state.driver);
    return status ? status : give_text(text, version, size);
}

EXPORT int nvmlSystemGetCudaDriverVersion(int *version) {
    State state;
    int status = begin(&state);
    *version = state.cuda;
    return status;
}

EXPORT int nvmlSystemGetCudaDriverVersion_v2(int *version) { return nvmlSystemGetCudaDriverVersion(version); }

/* A lost card still counts: it is its handle that the driver refuses. */
EXPORT int nvmlDeviceGetCount_v2(unsigned *count) {
    State state;
    int status = begin(&state);
    *count = (unsigned)state.cards;
    return status;
}

/* ---- handles ------------------------------------------------------------------------------------------- */

EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, Handle **handle) {
    State state;
    int status = begin(&state);
    if (status) return status;
    if (index >= (unsigned)state.cards) return INVALID_ARGUMENT;
    return give_handle(&state.card[index], handle);
}

EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, Handle **handle) {
    State state;
    int status = begin(&state);
    if (status) return status;
    for (int i = 0; i < state.cards; i++)
        if (!strcmp(state.card[i].uuid, uuid)) return give_handle(&state.card[i], handle);
    return NOT_FOUND;
}

EXPORT int nvmlDeviceGetHandleByPciBusId_v2(const char *pci, Handle **handle) {
    State state;
    int status = begin(&state);
    if (status) return status;
    for (int i = 0; i < state.cards; i++)
        if (!strcasecmp(state.card[i].pci, pci)) return give_handle(&state.card[i], handle);
    return NOT_FOUND;
}

/* ---- one card: what it is ------------------------------------------------------------------------------ */

EXPORT int nvmlDeviceGetUUID(Handle *handle, char *uuid, unsigned size) {
    State state; Card *card;
    int status = begin_card(&state, handle, &card);
    return status ? status : give_text(card->uuid, uuid, size);
}

EXPORT int nvmlDeviceGetName(Handle *handle, char *name, unsigned size) {
    State state; Card *card;
    int status = begin_card(&state, handle, &card);
    return status ? status : give_text(card->name, name, size);
}

EXPORT int nvmlDeviceGetIndex(Handle *handle, unsigned *index) {
    State state; Card *card;
    int status = begin_card(&state, handle, &card);
    if (!status) *index = (unsigned)(card - state.card);
    return status;
}

EXPORT int nvmlDeviceGetMinorNumber(Handle *handle, unsigned *minor) {
    State state; Card *card;
    int status = begin_card(&state, handle, &card);
    return status ? status : give_number(card->minor, minor);
}

EXPORT int nvmlDeviceGetPciInfo_v3(Handle *handle, PciInfo *info) {
    State state; Card *card;
    int status = begin_card(&state, handle, &card);
    if (status) return status;
    memset(info, 0, sizeof *info);
    if (sscanf(card->pci, "%x:%x:%x", &info->domain, &info->bus, &info->device) != 3) return UNKNOWN;
    copy(info->bus_id, sizeof info->bus_id, card->pci);
    snprintf(info->bus_id_legacy, sizeof info->bus_id_legacy, "%04X:%02X:%02X.0", info->domain & 0xffff,
             info->bus & 0xff, info->device & 0xff);
    info->device_id = 0x268410de; /* AD102, GeForce RTX 4090 */
    return SUCCESS;
}

EXPORT int nvmlDeviceGetCudaComputeCapability(Handle *handle, int *major, int *minor) {
    State state; Card *card;
    int status = begin_card(&state, handle, &card);
    if (!status) { *major = 8; *minor = 9; }
    return status;
}

EXPORT int nvmlDeviceGetMigMode(Handle *handle, unsigned *current, unsigned *pending) {
    State state; Card *card;
    (void)current; (void)pending;
    int status = begin_card(&state, handle, &card);
    return status ? status : NOT_SUPPORTED; /* no GeForce has MIG */
}

EXPORT int nvmlDeviceGetPersistenceMode(Handle *handle, unsigned *mode) {
    State state; Card *card;
    int status = begin_card(&state, handle, &card);
    if (!status) *mode = 1;
    return status;
}

EXPORT int nvmlDeviceGetComputeMode(Handle *handle, unsigned *mode) {
    State state; Card *card;
    int status = begin_card(&state, handle, &card);
    if (!status) *mode = 0;
    return status;
}

/* ---- one card: how it is ------------------------------------------------------------------------------- */

/* The old call counts what the driver keeps for itself as used; the new one tells it apart. */
static int split_memory(const Card *card, Memory *memory) {
    if (card->memory == NONE || card->used == NONE) return NOT_SUPPORTED;
    memory->total = card->memory;
    memory->used = card->used + card->reserved;
    memory->free = memory->total > memory->used ? memory->total - memory->used : 0;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetMemoryInfo(Handle *handle, Memory *memory) {
    State state; Card *card;
    int status = begin_card(&state, handle, &card);
    return status ? status : split_memory(card, memory);
}

EXPORT int nvmlDeviceGetMemoryInfo_v2(Handle *handle, MemoryV2 *memory) {
    Memory old;
    State state; Card *card;
    int status = begin_card(&state, handle, &card);
    if (status) return status;
    if (memory->version != (2u << 24 | sizeof *memory)) return ARGUMENT_VERSION_MISMATCH;
    if ((status = split_memory(card, &old))) return status;
    memory->total = old.total;
    memory->reserved = card->reserved;
    memory->free = old.free;
    memory->used = card->used;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetUtilizationRates(Handle *handle, Utilization *rates) {
    State state; Card *card;
    int status = begin_card(&state, handle, &card);
    if (status) return status;
    if ((status = give_number(card->utilisation, &rates->gpu))) return status;
    return give_number(card->memory_utilisation, &rates->memory);
}

EXPORT int nvmlDeviceGetTemperature(Handle *handle, int sensor, unsigned *celsius) {
    State state; Card *card;
    int status = begin_card(&state, handle, &card);
    if (status) return status;
    return sensor ? INVALID_ARGUMENT : give_number(card->temperature, celsius);
}

EXPORT int nvmlDeviceGetTemperatureV(Handle *handle, TemperatureV1 *temperature) {
    unsigned celsius = 0;
    if (temperature->version != (1u << 24 | sizeof *temperature)) return ARGUMENT_VERSION_MISMATCH;
    int status = nvmlDeviceGetTemperature(handle, (int)temperature->sensor, &celsius);
    temperature->temperature = (int)celsius;
    return status;
}

EXPORT int nvmlDeviceGetPowerUsage(Handle *handle, unsigned *milliwatts) {
    State state; Card *card;
    int status = begin_card(&state, handle, &card);
    return status ? status : give_number(card->power, milliwatts);
}

EXPORT int nvmlDeviceGetEnforcedPowerLimit(Handle *handle, unsigned *milliwatts) {
    State state; Card *card;
    int status = begin_card(&state, handle, &card);
    return status ? status : give_number(card->power_limit, milliwatts);
}

static int running(Handle *handle, char kind, unsigned *count, ProcessInfo *infos) {
    State state; Card *card;
    int status = begin_card(&state, handle, &card);
    if (status) return status;
    unsigned room = infos ? *count : 0, found = 0;
    for (int i = 0; i < state.processes; i++) {
        Process *process = &state.process[i];
        if (process->kind != kind || strcmp(process->uuid, card->uuid)) continue;
        if (found < room)
            infos[found] = (ProcessInfo){process->pid, process->memory, 0xffffffff, 0xffffffff};
        found++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(Handle *handle, unsigned *count, ProcessInfo *infos) {
    return running(handle, 'c', count, infos);
}

EXPORT int nvmlDeviceGetGraphicsRunningProcesses_v3(Handle *handle, unsigned *count, ProcessInfo *infos) {
    return running(handle, 'g', count, infos);
}

EXPORT int nvmlDeviceGetMPSComputeRunningProcesses_v3(Handle *handle, unsigned *count, ProcessInfo *infos) {
    return running(handle, 'm', count, infos);
}

/* ---- events -------------------------------------------------------------------------------------------- */

/* Each event set is told once of each XID that came after its card was registered; a serial tells them apart. */
enum { XID_CRITICAL = 0x8 };

typedef struct { char uuid[MAX_CARDS][96]; u64 seen[MAX_CARDS]; int cards; } EventSet;
typedef struct { Handle *device; u64 type, data; unsigned gpu_instance, compute_instance; } EventData; /* 32 bytes */

EXPORT int nvmlEventSetCreate(EventSet **set) {
    State state;
    int status = begin(&state);
    if (status) return status;
    *set = calloc(1, sizeof **set);
    return *set ? SUCCESS : UNKNOWN;
}

EXPORT int nvmlEventSetFree(EventSet *set) {
    free(set);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetSupportedEventTypes(Handle *handle, u64 *types) {
    State state; Card *card;
    int status = begin_card(&state, handle, &card);
    if (!status) *types = XID_CRITICAL;
    return status;
}

EXPORT int nvmlDeviceRegisterEvents(Handle *handle, u64 types, EventSet *set) {
    State state; Card *card;
    int status = begin_card(&state, handle, &card);
    if (status) return status;
    if (!set || types != XID_CRITICAL) return INVALID_ARGUMENT;
    if (set->cards == MAX_CARDS) return UNKNOWN;
    u64 seen = 0;
    for (int i = 0; i < state.xids; i++)
        if (!strcmp(state.xid[i].uuid, card->uuid) && state.xid[i].serial > seen) seen = state.xid[i].serial;
    copy(set->uuid[set->cards], sizeof set->uuid[0], card->uuid);
    set->seen[set->cards++] = seen;
    return SUCCESS;
}

/* It does not wait: a test that wants the driver to be slow says delay_ms. */
EXPORT int nvmlEventSetWait_v2(EventSet *set, EventData *data, unsigned milliseconds) {
    (void)milliseconds;
    State state;
    int status = begin(&state);
    if (status) return status;
    for (int i = 0; i < state.xids; i++) {
        XidLine *xid = &state.xid[i];
        for (int card = 0; card < set->cards; card++) {
            if (strcmp(set->uuid[card], xid->uuid) || xid->serial <= set->seen[card]) continue;
            set->seen[card] = xid->serial;
            memset(data, 0, sizeof *data);
            for (int handle = 0; handle < handle_count; handle++)
                if (!strcmp(handles[handle].uuid, xid->uuid)) data->device = &handles[handle];
            data->type = XID_CRITICAL;
            data->data = xid->number;
            return SUCCESS;
        }
    }
    return TIMED_OUT;
}
