/* A double of libnvidia-ml.so.1: the part of NVML's ABI that the supervisor calls through pynvml, steered by files.
 *
 * $NVML_DOUBLE names a folder. `cards` is read again whenever it changed (write a new one beside it, then rename):
 *
 *     driver 550.163.01       init 18                 nvmlReturn of nvmlInit
 *     hang nvmlInitWithFlags                          that call, or *, does not return while the line stands
 *     card GPU-...                                    begins a card; its index is its place in the file
 *       name NVIDIA L4        bus 00000000:3B:00.0
 *       <number> <value>                              see NUMBERS; -1 means that the card has no such thing
 *       process <pid> <bytes>                         -1: the driver does not tell how much
 *       fail <function> <nvmlReturn>                  or *
 *       hang <function>                               or *
 *       block <path>                                  every call stats that path: a mount that never answers
 *
 * `xids` is only appended to, one "<uuid> <code>" a line. A set hears what is appended after a card was registered with
 * it. A handle stands for a UUID as NVML's stands for a device: a card that leaves the file answers GPU_IS_LOST to those
 * who hold its handle, whatever took its index. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define VERSION(type, n) (sizeof(type) | (unsigned)(n) << 24)
#define LENGTH(array) (sizeof(array) / sizeof *(array))

typedef int result;
enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9, TIMEOUT = 10, GPU_IS_LOST = 15, RESET_REQUIRED = 16, MISMATCH = 18, OUT_OF_MEMORY = 20,
    STRUCT_VERSION = 25, UNKNOWN = 999
};

/* What a card tells as a number, and what it tells when the file is silent: an idle L4. */
#define NUMBERS(of)                                                                                                  \
    of(memory_total, 24152899584) of(memory_reserved, 471859200) of(memory_unlisted, 0) of(utilization, 0)            \
    of(memory_utilization, 0) of(temperature, 40) of(power, 16000) of(throttle, 0) of(ecc_uncorrected, 0)             \
    of(ecc_corrected, 0) of(remapped_correctable, 0) of(remapped_uncorrectable, 0) of(remap_pending, 0)               \
    of(remap_failed, 0) of(retired_pending, -1) of(mig, -1) of(recovery, 0) of(minor, 0) of(persistence, 1)           \
    of(events, 0x0f)
#define AS_ENUM(name, usual) name,
#define AS_NAME(name, usual) #name,
#define AS_USUAL(name, usual) usual,
enum number { NUMBERS(AS_ENUM) HOW_MANY };
static const char *const NAMES[] = {NUMBERS(AS_NAME)};
static const long long USUAL[] = {NUMBERS(AS_USUAL)};

enum { CARDS = 16, PROCESSES = 64, RULES = 32, HANDLES = 64, MEMBERS = 16, XID = 0x8, VALUE_UNSIGNED = 1, FIELD_RECOVERY = 230 };

struct rule { char function[64]; int code; };
struct rules { int count; struct rule rule[RULES]; };
struct process { unsigned pid; long long bytes; };
struct card {
    char uuid[96], name[96], bus[32], block[256];
    long long number[HOW_MANY];
    int processes;
    struct process process[PROCESSES];
    struct rules fail, hang;
};
struct machine { char driver[80]; int init, cards; struct rules hang; struct card card[CARDS]; };
struct handle { char uuid[96]; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct machine machine;
static struct stat read_as;
static struct handle handles[HANDLES];
static int handle_count, users;

/* --- the files ---------------------------------------------------------------------------------------------------- */

static const char *path_of(const char *leaf, char path[4096]) {
    const char *folder = getenv("NVML_DOUBLE");
    snprintf(path, 4096, "%s/%s", folder ? folder : "/nonexistent", leaf);
    return path;
}

static void add_rule(struct rules *rules, const char *words) {
    struct rule rule = {"", 0};
    if (rules->count < RULES && sscanf(words, "%63s %d", rule.function, &rule.code) >= 1) rules->rule[rules->count++] = rule;
}

static const struct rule *find_rule(const struct rules *rules, const char *function) {
    for (int i = 0; i < rules->count; i++)
        if (!strcmp(rules->rule[i].function, "*") || !strcmp(rules->rule[i].function, function)) return &rules->rule[i];
    return NULL;
}

static struct card *begin_card(struct machine *into, const char *uuid) {
    if (into->cards == CARDS) return NULL;
    struct card *card = &into->card[into->cards];
    snprintf(card->uuid, sizeof card->uuid, "%s", uuid);
    snprintf(card->name, sizeof card->name, "NVIDIA L4");
    snprintf(card->bus, sizeof card->bus, "00000000:%02X:00.0", into->cards + 1);
    memcpy(card->number, USUAL, sizeof USUAL);
    card->number[minor] = into->cards++;
    return card;
}

static void card_line(struct card *card, const char *key, const char *words) {
    if (!strcmp(key, "name")) snprintf(card->name, sizeof card->name, "%s", words);
    else if (!strcmp(key, "bus")) snprintf(card->bus, sizeof card->bus, "%s", words);
    else if (!strcmp(key, "block")) snprintf(card->block, sizeof card->block, "%s", words);
    else if (!strcmp(key, "fail")) add_rule(&card->fail, words);
    else if (!strcmp(key, "hang")) add_rule(&card->hang, words);
    else if (!strcmp(key, "process") && card->processes < PROCESSES) {
        struct process *process = &card->process[card->processes];
        if (sscanf(words, "%u %lld", &process->pid, &process->bytes) == 2) card->processes++;
    }
    for (int i = 0; i < HOW_MANY; i++)
        if (!strcmp(key, NAMES[i])) card->number[i] = strtoll(words, NULL, 0);
}

static void parse(FILE *file, struct machine *into) {
    char line[512], key[64];
    struct card *card = NULL;
    while (fgets(line, sizeof line, file)) {
        int at = 0;
        line[strcspn(line, "\n")] = 0;
        if (sscanf(line, " %63s %n", key, &at) < 1) continue;
        if (!strcmp(key, "card")) card = begin_card(into, line + at);
        else if (card) card_line(card, key, line + at);
        else if (!strcmp(key, "driver")) snprintf(into->driver, sizeof into->driver, "%s", line + at);
        else if (!strcmp(key, "init")) into->init = atoi(line + at);
        else if (!strcmp(key, "hang")) add_rule(&into->hang, line + at);
    }
}

static void look(void) { /* with the lock held */
    static struct machine fresh;
    char path[4096];
    struct stat now;
    if (stat(path_of("cards", path), &now)) return;
    if (now.st_ino == read_as.st_ino && now.st_size == read_as.st_size && now.st_mtim.tv_sec == read_as.st_mtim.tv_sec &&
        now.st_mtim.tv_nsec == read_as.st_mtim.tv_nsec)
        return;
    FILE *file = fopen(path, "re");
    if (!file) return;
    memset(&fresh, 0, sizeof fresh);
    parse(file, &fresh);
    fclose(file);
    machine = fresh;
    read_as = now;
}

/* --- every call ------------------------------------------------------------------------------------------------------- */

static void nap(void) {
    struct timespec moment = {0, 5 * 1000 * 1000};
    nanosleep(&moment, NULL);
}

static struct card *card_of(const char *uuid) {
    for (int i = 0; i < machine.cards; i++)
        if (!strcasecmp(machine.card[i].uuid, uuid)) return &machine.card[i];
    return NULL;
}

static int hangs(const char *function, const char *uuid) {
    const struct card *card = uuid ? card_of(uuid) : NULL;
    return find_rule(&machine.hang, function) || (card && find_rule(&card->hang, function));
}

/* Begins a call: hangs while told so, then tells the injected failure. The lock is held when it returns SUCCESS. */
static result enter(const char *function, const char *uuid, struct card **card) {
    pthread_mutex_lock(&lock);
    for (look(); hangs(function, uuid); look()) {
        pthread_mutex_unlock(&lock);
        nap();
        pthread_mutex_lock(&lock);
    }
    result failure = users || !strncmp(function, "nvmlInit", 8) ? SUCCESS : UNINITIALIZED;
    if (uuid && !failure) {
        *card = card_of(uuid);
        const struct rule *rule = *card ? find_rule(&(*card)->fail, function) : NULL;
        failure = !*card ? GPU_IS_LOST : rule ? rule->code : SUCCESS;
        if (*card && (*card)->block[0]) {
            char path[sizeof (*card)->block];
            struct stat ignored;
            strcpy(path, (*card)->block);
            if (stat(path, &ignored)) failure = failure ? failure : UNKNOWN; /* the mount ended while we hung in it */
        }
    }
    if (failure) pthread_mutex_unlock(&lock);
    return failure;
}

#define LEAVE(code) do { pthread_mutex_unlock(&lock); return (code); } while (0)
#define ENTER() do { result failed_ = enter(__func__, NULL, NULL); if (failed_) return failed_; } while (0)
#define ENTER_CARD_AS(function, device)                                                                               \
    struct card *card = NULL;                                                                                         \
    do {                                                                                                              \
        if (!is_handle(device)) return INVALID_ARGUMENT;                                                              \
        result failed_ = enter(function, ((struct handle *)(device))->uuid, &card);                                   \
        if (failed_) return failed_;                                                                                  \
    } while (0)
#define ENTER_CARD(device) ENTER_CARD_AS(__func__, device)
#define NUMBER_OR_LEAVE(which) do { if (card->number[which] < 0) LEAVE(NOT_SUPPORTED); } while (0)

static int is_handle(const void *device) {
    for (int i = 0; i < handle_count; i++)
        if (device == &handles[i]) return 1;
    return 0;
}

static void *handle_of(const char *uuid) { /* with the lock held */
    for (int i = 0; i < handle_count; i++)
        if (!strcasecmp(handles[i].uuid, uuid)) return &handles[i];
    if (handle_count == HANDLES) return NULL;
    snprintf(handles[handle_count].uuid, sizeof handles[0].uuid, "%s", uuid);
    return &handles[handle_count++];
}

/* --- the library and the driver --------------------------------------------------------------------------------------- */

EXPORT result nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    ENTER();
    if (!machine.init) users++;
    LEAVE(machine.init);
}
EXPORT result nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
EXPORT result nvmlShutdown(void) { ENTER(); users--; LEAVE(SUCCESS); }
EXPORT const char *nvmlErrorString(result code) {
    switch (code) {
    case SUCCESS: return "Success";
    case NOT_SUPPORTED: return "Not Supported";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case GPU_IS_LOST: return "GPU is lost";
    case RESET_REQUIRED: return "GPU requires reset";
    case MISMATCH: return "Driver/library version mismatch";
    default: return "Unknown Error";
    }
}
EXPORT result nvmlSystemGetDriverVersion(char *text, unsigned size) {
    ENTER();
    snprintf(text, size, "%s", machine.driver);
    LEAVE(SUCCESS);
}

/* --- cards ------------------------------------------------------------------------------------------------------------ */

EXPORT result nvmlDeviceGetCount_v2(unsigned *count) { ENTER(); *count = machine.cards; LEAVE(SUCCESS); }
EXPORT result nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    char uuid[96] = "";
    pthread_mutex_lock(&lock);
    look();
    if ((int)index < machine.cards) strcpy(uuid, machine.card[index].uuid);
    pthread_mutex_unlock(&lock);
    if (!uuid[0]) return INVALID_ARGUMENT;
    struct card *card = NULL;
    result failed = enter(__func__, uuid, &card);
    if (failed) return failed;
    *device = handle_of(uuid);
    LEAVE(*device ? SUCCESS : OUT_OF_MEMORY);
}
EXPORT result nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    struct card *card = NULL;
    result failed = enter(__func__, uuid, &card);
    if (failed) return failed == GPU_IS_LOST && !card ? NOT_FOUND : failed;
    *device = handle_of(card->uuid);
    LEAVE(*device ? SUCCESS : OUT_OF_MEMORY);
}
EXPORT result nvmlDeviceGetUUID(void *device, char *text, unsigned size) {
    ENTER_CARD(device);
    snprintf(text, size, "%s", card->uuid);
    LEAVE(SUCCESS);
}
EXPORT result nvmlDeviceGetName(void *device, char *text, unsigned size) {
    ENTER_CARD(device);
    snprintf(text, size, "%s", card->name);
    LEAVE(SUCCESS);
}
EXPORT result nvmlDeviceGetIndex(void *device, unsigned *index) {
    ENTER_CARD(device);
    *index = card - machine.card;
    LEAVE(SUCCESS);
}

struct pci { char legacy[16]; unsigned domain, bus, device, id, subsystem; char text[32]; };
EXPORT result nvmlDeviceGetPciInfo_v3(void *device, struct pci *pci) {
    ENTER_CARD(device);
    memset(pci, 0, sizeof *pci);
    sscanf(card->bus, "%x:%x:%x", &pci->domain, &pci->bus, &pci->device);
    snprintf(pci->legacy, sizeof pci->legacy, "%04x:%02x:%02x.0", pci->domain & 0xffff, pci->bus & 0xff, pci->device & 0xff);
    snprintf(pci->text, sizeof pci->text, "%s", card->bus);
    LEAVE(SUCCESS);
}

/* Memory: `used` of the first version counts what the driver reserves, `used` of the second does not. */
struct memory { unsigned long long total, free, used; };
struct memory_v2 { unsigned version; unsigned long long total, reserved, free, used; };
static unsigned long long taken(const struct card *card) {
    unsigned long long sum = card->number[memory_unlisted];
    for (int i = 0; i < card->processes; i++)
        if (card->process[i].bytes > 0) sum += card->process[i].bytes;
    unsigned long long room = card->number[memory_total] - card->number[memory_reserved];
    return sum < room ? sum : room;
}
EXPORT result nvmlDeviceGetMemoryInfo(void *device, struct memory *memory) {
    ENTER_CARD(device);
    memory->total = card->number[memory_total];
    memory->used = taken(card) + card->number[memory_reserved];
    memory->free = memory->total - memory->used;
    LEAVE(SUCCESS);
}
EXPORT result nvmlDeviceGetMemoryInfo_v2(void *device, struct memory_v2 *memory) {
    ENTER_CARD(device);
    if (memory->version != VERSION(struct memory_v2, 2)) LEAVE(STRUCT_VERSION);
    memory->total = card->number[memory_total];
    memory->reserved = card->number[memory_reserved];
    memory->used = taken(card);
    memory->free = memory->total - memory->reserved - memory->used;
    LEAVE(SUCCESS);
}

struct utilization { unsigned gpu, memory; };
EXPORT result nvmlDeviceGetUtilizationRates(void *device, struct utilization *rates) {
    ENTER_CARD(device);
    NUMBER_OR_LEAVE(utilization);
    rates->gpu = card->number[utilization];
    rates->memory = card->number[memory_utilization];
    LEAVE(SUCCESS);
}
EXPORT result nvmlDeviceGetTemperature(void *device, unsigned sensor, unsigned *celsius) {
    ENTER_CARD(device);
    if (sensor) LEAVE(INVALID_ARGUMENT);
    NUMBER_OR_LEAVE(temperature);
    *celsius = card->number[temperature];
    LEAVE(SUCCESS);
}

/* Calls that tell one number: what it is called here, its type, which number. */
#define ONE_NUMBER(function, type, which)                                                                             \
    EXPORT result function(void *device, type *value) {                                                               \
        ENTER_CARD(device);                                                                                           \
        NUMBER_OR_LEAVE(which);                                                                                       \
        *value = card->number[which];                                                                                 \
        LEAVE(SUCCESS);                                                                                               \
    }
ONE_NUMBER(nvmlDeviceGetMinorNumber, unsigned, minor)
ONE_NUMBER(nvmlDeviceGetPowerUsage, unsigned, power)
ONE_NUMBER(nvmlDeviceGetPersistenceMode, unsigned, persistence)
ONE_NUMBER(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long, throttle)
ONE_NUMBER(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, throttle)
ONE_NUMBER(nvmlDeviceGetRetiredPagesPendingStatus, unsigned, retired_pending)
ONE_NUMBER(nvmlDeviceGetSupportedEventTypes, unsigned long long, events)

EXPORT result nvmlDeviceGetMigMode(void *device, unsigned *now, unsigned *pending) {
    ENTER_CARD(device);
    NUMBER_OR_LEAVE(mig);
    *now = *pending = card->number[mig];
    LEAVE(SUCCESS);
}
EXPORT result nvmlDeviceGetTotalEccErrors(void *device, unsigned type, unsigned counter, unsigned long long *errors) {
    ENTER_CARD(device);
    if (type > 1 || counter > 1) LEAVE(INVALID_ARGUMENT);
    enum number which = type ? ecc_uncorrected : ecc_corrected;
    NUMBER_OR_LEAVE(which);
    *errors = card->number[which];
    LEAVE(SUCCESS);
}
EXPORT result nvmlDeviceGetRemappedRows(void *device, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed) {
    ENTER_CARD(device);
    NUMBER_OR_LEAVE(remap_pending);
    *corrected = card->number[remapped_correctable];
    *uncorrected = card->number[remapped_uncorrectable];
    *pending = card->number[remap_pending];
    *failed = card->number[remap_failed];
    LEAVE(SUCCESS);
}

struct field { unsigned id, scope; long long timestamp, latency; unsigned type; result code; unsigned long long value; };
EXPORT result nvmlDeviceGetFieldValues(void *device, int count, struct field *fields) {
    ENTER_CARD(device);
    for (struct field *field = fields; field < fields + count; field++) {
        int known = field->id == FIELD_RECOVERY && card->number[recovery] >= 0;
        field->type = VALUE_UNSIGNED;
        field->code = known ? SUCCESS : NOT_SUPPORTED;
        field->value = known ? card->number[recovery] : 0;
    }
    LEAVE(SUCCESS);
}

struct running { unsigned pid; unsigned long long bytes; unsigned gpu_instance, compute_instance; };
EXPORT result nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, struct running *list) {
    ENTER_CARD(device);
    unsigned room = *count;
    *count = card->processes;
    if (card->processes && (!list || room < *count)) LEAVE(INSUFFICIENT_SIZE);
    for (unsigned i = 0; i < *count; i++)
        list[i] = (struct running){card->process[i].pid, card->process[i].bytes, ~0u, ~0u};
    LEAVE(SUCCESS);
}
EXPORT result nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned *count, struct running *list) {
    (void)list;
    ENTER_CARD(device);
    *count = 0;
    LEAVE(SUCCESS);
}

/* --- events ----------------------------------------------------------------------------------------------------------- */

struct event { void *device; unsigned long long type, data; unsigned gpu_instance, compute_instance; };
struct set { int members; long read; struct { char uuid[96]; long since; } member[MEMBERS]; };

static long heard_so_far(void) {
    char path[4096];
    struct stat file;
    return stat(path_of("xids", path), &file) ? 0 : file.st_size;
}

EXPORT result nvmlEventSetCreate(struct set **set) {
    ENTER();
    *set = calloc(1, sizeof **set);
    LEAVE(*set ? SUCCESS : OUT_OF_MEMORY);
}
EXPORT result nvmlEventSetFree(struct set *set) { ENTER(); free(set); LEAVE(SUCCESS); }
EXPORT result nvmlDeviceRegisterEvents(void *device, unsigned long long types, struct set *set) {
    ENTER_CARD(device);
    if (types & ~(unsigned long long)card->number[events]) LEAVE(NOT_SUPPORTED);
    if (set->members == MEMBERS) LEAVE(OUT_OF_MEMORY);
    if (!set->members) set->read = heard_so_far();
    strcpy(set->member[set->members].uuid, card->uuid);
    set->member[set->members++].since = heard_so_far();
    LEAVE(SUCCESS);
}

static int is_member(const struct set *set, const char *uuid, long at) {
    for (int i = 0; i < set->members; i++)
        if (!strcasecmp(set->member[i].uuid, uuid)) return at >= set->member[i].since;
    return 0;
}

static int next_event(struct set *set, struct event *event) {
    char path[4096], line[160], uuid[96];
    FILE *file = fopen(path_of("xids", path), "re");
    if (!file) return 0;
    int found = 0;
    fseek(file, set->read, SEEK_SET);
    while (!found && fgets(line, sizeof line, file) && strchr(line, '\n')) { /* a line without its end is still being written */
        long at = set->read;
        unsigned long long code;
        set->read = ftell(file);
        if (sscanf(line, "%95s %llu", uuid, &code) != 2 || !is_member(set, uuid, at)) continue;
        *event = (struct event){handle_of(uuid), XID, code, ~0u, ~0u};
        found = 1;
    }
    fclose(file);
    return found;
}

/* As in NVML: a set with a lost card in it fails for all its cards. */
static result lost_member(const struct set *set, const char *function) {
    for (int i = 0; i < set->members; i++) {
        const struct card *card = card_of(set->member[i].uuid);
        const struct rule *rule = card ? find_rule(&card->fail, function) : NULL;
        if (!card) return GPU_IS_LOST;
        if (rule) return rule->code;
    }
    return SUCCESS;
}

EXPORT result nvmlEventSetWait_v2(struct set *set, struct event *event, unsigned timeout_ms) {
    struct timespec begun, now;
    clock_gettime(CLOCK_MONOTONIC, &begun);
    for (;;) {
        ENTER();
        result lost = lost_member(set, __func__);
        if (next_event(set, event)) LEAVE(SUCCESS);
        if (lost) LEAVE(lost);
        pthread_mutex_unlock(&lock);
        clock_gettime(CLOCK_MONOTONIC, &now);
        if ((now.tv_sec - begun.tv_sec) * 1000 + (now.tv_nsec - begun.tv_nsec) / 1000000 >= (long)timeout_ms) return TIMEOUT;
        nap();
    }
}
