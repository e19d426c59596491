// Runs a CUDA kernel on a CPU with every thread of a block as a fiber, warps of 32, in one OS
// thread: a thread runs until it waits, in ascending or in descending order. Blocks run one after
// another. What would go wrong on a GPU is recorded, and never waits for ever.
#include "emulator.h"
#include "memory.h"
#include <csignal>
#include <dlfcn.h>
#include <link.h>

namespace emulator {

Thread threads[MAX_THREADS], *now;
int count, block;
uint32_t interval, block_start;
static jmp_buf home;
static bool stopped;
static Finding findings[MAX_FINDINGS];
static int n_findings;
static void (*kernel)(void **);
static void **arguments;
char *library, *library_end;

uint32_t place(void *pc) { return uint32_t((char *)pc - library); }

// A new finding; null if it is a repetition of one, or one too many.
Finding *found(int kind, uint32_t pc, uint32_t other_pc, const char *name) {
    for (int i = 0; i < n_findings; i++)
        if (findings[i].kind == kind && findings[i].pc == pc && findings[i].other_pc == other_pc)
            return nullptr;
    if (n_findings == MAX_FINDINGS) return nullptr;
    Finding &f = findings[n_findings++];
    f = Finding();
    f.kind = kind, f.pc = pc, f.other_pc = other_pc, f.block = block;
    f.thread = now ? now->index : -1, f.other_thread = f.other_block = f.lane = -1;
    if (now) memcpy(f.callers, now->callers, sizeof(uint32_t) * std::clamp(now->depth, 0, CALLERS));
    strncpy(f.name, name, sizeof f.name - 1);
    return &f;
}

// Switching. A fiber starts with setcontext and is left and resumed with longjmp.
static void body() {
    kernel(arguments);
    now->status = DONE;
    _longjmp(home, 1);
}
void leave() {
    if (_setjmp(now->state) == 0) _longjmp(home, 1);
}
void stop() {
    stopped = true;
    _longjmp(home, 1);
}
}

struct Three { unsigned x, y, z; };
extern "C" {
Three threadIdx, blockIdx, blockDim, gridDim;
int minipar_silent;
}

static Three place_in(unsigned i, Three size) {
    return {i % size.x, i / size.x % size.y, i / size.x / size.y};
}

__attribute__((noinline)) static void resume(Thread &t) {
    now = &t;
    threadIdx = place_in(t.index, blockDim);
    if (_setjmp(home) == 0) {
        if (t.started) _longjmp(t.state, 1);
        t.started = true;
        setcontext(&t.start);
    }
    now = nullptr;
}

// ---------------------------------------------------------------------------------------------
// Warps

enum { SYNC, BALLOT, SHUFFLE, SHUFFLE_UP, SHUFFLE_DOWN, SHUFFLE_XOR, MATCH };  // emulated.h

static int source_lane(const Thread &t) {
    int first = t.lane & ~(t.width - 1), last = first + t.width - 1, s = t.lane;
    switch (t.kind) {
        case SHUFFLE: return first + (t.source & (t.width - 1));
        case SHUFFLE_UP: s = t.lane - t.source; return s < first ? t.lane : s;
        case SHUFFLE_DOWN: s = t.lane + t.source; return s > last ? t.lane : s;
        default: s = t.lane ^ t.source; return s > last ? t.lane : s;
    }
}

// If all lanes of t's mask that still run are in the same operation: carry it out.
static void try_warp(Thread &t) {
    Thread *w = threads + 32 * t.warp;
    int lanes = std::min(32, count - 32 * t.warp);
    unsigned here = 0;
    for (int l = 0; l < lanes; l++) {
        if (!(t.mask >> l & 1) || w[l].status == DONE) continue;
        if (w[l].status != IN_WARP || w[l].kind != t.kind || w[l].mask != t.mask) return;
        here |= 1u << l;
    }
    unsigned ballot = 0;
    for (int l = 0; l < lanes; l++) ballot |= unsigned(here >> l & 1 && w[l].bits) << l;
    uint64_t result[32] = {};
    for (int l = 0; l < lanes; l++) {
        if (!(here >> l & 1)) continue;
        if (t.kind == SYNC || t.kind == BALLOT) result[l] = ballot;
        else if (t.kind == MATCH) {
            for (int k = 0; k < lanes; k++)
                result[l] |= uint64_t(here >> k & 1 && w[k].bits == w[l].bits) << k;
        } else {
            int s = source_lane(w[l]);
            if (!(here >> s & 1)) {
                now = &w[l];
                Finding *f = found(ABSENT_LANE, w[l].pc);
                if (f) f->lane = s, f->mask = t.mask, f->access = t.kind,
                       f->other_access = !(t.mask >> s & 1) ? 0 : s < lanes ? 1 : 2;
                stop();
            }
            result[l] = w[s].bits;
        }
    }
    if (t.kind == SYNC) synchronise(here, t.warp);
    for (int l = 0; l < lanes; l++)
        if (here >> l & 1) memcpy(&w[l].bits, &result[l], 8), w[l].status = READY;
}

extern "C" uint64_t minipar_warp(int kind, unsigned mask, uint64_t bits, int source, int width) {
    Thread &t = *now;
    t.pc = place(HERE);
    t.kind = kind, t.mask = mask, t.bits = bits, t.source = source & 31, t.width = width;
    counts.warp_operations++;
    t.idle = 0;
    if (!(mask >> t.lane & 1)) {
        Finding *f = found(NOT_IN_MASK, t.pc);
        if (f) f->mask = mask, f->lane = t.lane, f->access = kind;
        stop();
    }
    t.status = IN_WARP;
    try_warp(t);
    if (t.status != READY) leave();
    return t.bits;
}

extern "C" unsigned minipar_active() {
    return 1u << now->lane;  // any set of lanes with the caller would do: nothing more is promised
}

// ---------------------------------------------------------------------------------------------
// Barriers of a block

extern "C" int minipar_barrier(int kind, int value) {
    Thread &t = *now;
    t.pc = place(HERE);
    t.kind = kind, t.value = value, t.status = AT_BARRIER, t.idle = 0;
    leave();
    return t.result;
}

// All threads wait, or have ended: open the barrier if they wait at one and the same.
static bool release() {
    int any = 0, all = 1, sum = 0;
    const Thread &first = threads[0];
    size_t callers = sizeof(uint32_t) * std::clamp(first.depth, 0, CALLERS);
    for (Thread *t = threads; t < threads + count; t++) {
        if (t->status != AT_BARRIER || t->pc != first.pc || t->kind != first.kind
            || t->depth != first.depth || memcmp(t->callers, first.callers, callers)) return false;
        any |= t->value, all &= t->value, sum += t->value;
    }
    for (Thread *t = threads; t < threads + count; t++) {
        t->status = READY;
        t->result = t->kind == 1 ? any : t->kind == 2 ? all : sum;
    }
    interval++;
    return true;
}

extern "C" void minipar_trap() { found(TRAP, place(HERE)), stop(); }
extern "C" __attribute__((visibility("hidden")))
void __assert_fail(const char *text, const char *, unsigned line, const char *) {
    if (Finding *f = found(ASSERTION, place(HERE), 0, text)) f->line = (int)line;
    stop();
}

// ---------------------------------------------------------------------------------------------
// Running

static void fault(int signal, siginfo_t *about, void *context) {
    if (!now) {  // not a kernel's
        ::signal(signal, SIG_DFL);
        return;
    }
    uint32_t pc = 0;
#if defined(__x86_64__) && defined(__linux__)
    pc = place((char *)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] + 1);
#elif defined(__aarch64__) && defined(__linux__)
    pc = place((char *)((ucontext_t *)context)->uc_mcontext.pc + 1);
#endif
    char *a = (char *)about->si_addr;
    if (Finding *f = found(FAULT, pc)) {
        f->access = signal == SIGFPE ? 0 : size_t(a - now->stack) < GUARD_BYTES ? 1 : 2;
        f->size = STACK_BYTES;
    }
    stop();
}

static char *stacks;  // of the threads of a block, while a kernel runs

// A guard page below each stack, and so two mappings: they are given back after the launch, for a
// process may have 65,530 of them, and every built file would keep its own.
static bool map_stacks() {
    size_t each = STACK_BYTES + GUARD_BYTES;
    stacks = (char *)mmap(nullptr, each * count, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    for (int i = 0; stacks != MAP_FAILED && i < count; i++)
        mprotect(stacks + i * each, GUARD_BYTES, PROT_NONE);
    return stacks != MAP_FAILED;
}

static void start_block(int number) {
    block = number;
    blockIdx = place_in(number, gridDim);
    block_start = ++interval;
    block_begins(number);
    for (int i = 0; i < count; i++) {
        Thread &t = threads[i];
        memset(&t, 0, sizeof t);
        t.index = i, t.warp = i / 32, t.lane = i % 32, t.clock = 1;
        t.stack = stacks + i * (STACK_BYTES + GUARD_BYTES);
        getcontext(&t.start);
        t.start.uc_stack.ss_sp = t.stack + GUARD_BYTES;
        t.start.uc_stack.ss_size = STACK_BYTES;
        t.start.uc_link = nullptr;
        makecontext(&t.start, body, 0);
    }
}

// A warp need not wait for t any more.
__attribute__((noinline)) static void ended(const Thread &t) {
    if (_setjmp(home) == 0)
        for (int l = 32 * t.warp; l < std::min(count, 32 * t.warp + 32); l++)
            if (threads[l].status == IN_WARP) try_warp(threads[l]);
    now = nullptr;
}

static void run_block(int number, bool reverse) {
    start_block(number);
    uint64_t barriers = 0;
    for (int waiting = 0; !stopped;) {
        bool ran = false, done = true, spun = true;
        for (int k = 0; k < count && !stopped; k++) {
            Thread &t = threads[reverse ? count - 1 - k : k];
            if (t.status == READY) {
                t.spun = false;
                resume(t);
                ran = true, spun &= t.spun;
                if (t.status == DONE) ended(t);
            }
            done &= t.status == DONE;
        }
        if (stopped || done) break;
        if (ran) {
            waiting = spun ? waiting + 1 : 0;
            if (waiting > 64) found(WAITS, 0), stopped = true;
        } else if (release()) barriers++;
        else found(DIVERGED, 0), stopped = true;
    }
    uint64_t used = 0;
    for (Region *r = variables; r < variables + n_variables; r++)
        if (r->used && r != dynamic) used += r->bytes;
    counts.shared = std::max(counts.shared, used);
    counts.barriers = std::max(counts.barriers, barriers);
    if (used > 48 << 10 && !stopped)
        if (Finding *f = found(TOO_MUCH_SHARED, 0)) f->size = used, stopped = true;
}

static void find_library() {
    Dl_info about;
    dladdr((void *)&run_block, &about);
    library = library_end = (char *)about.dli_fbase;
    dl_iterate_phdr([](dl_phdr_info *o, size_t, void *) {
        for (int i = 0; (char *)o->dlpi_addr == library && i < o->dlpi_phnum; i++)
            if (o->dlpi_phdr[i].p_type == PT_LOAD)
                library_end = std::max(library_end, library + o->dlpi_phdr[i].p_vaddr
                                                    + o->dlpi_phdr[i].p_memsz);
        return 0;
    }, nullptr);
}

// Runs all blocks of a launch; the number of findings. size: grid x y z, block x y z; padding:
// whether shared memory may be read that nobody has written.
EXPORT int minipar_run(void (*function)(void **), void **values, const unsigned *size,
                       size_t dynamic, int reverse, int padding) {
    if (!library) find_library();
    watch_image();
    kernel = function, arguments = values;
    gridDim = {size[0], size[1], size[2]}, blockDim = {size[3], size[4], size[5]};
    count = int(size[3] * size[4] * size[5]);
    n_findings = 0, stopped = false, interval = 0, minipar_silent = reverse;
    padding_is_read = padding;
    starts.clear(), blocks.clear(), released.clear();
    counts = Counts(), counts.dynamic = dynamic;

    static char spare[64 << 10];  // a fault on a full stack needs another one
    stack_t alternative = {}, previous;
    alternative.ss_sp = spare, alternative.ss_size = sizeof spare;
    sigaltstack(&alternative, &previous);
    struct sigaction action = {}, kept[3];
    action.sa_sigaction = fault, action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    const int signals[] = {SIGSEGV, SIGBUS, SIGFPE};
    for (int i = 0; i < 3; i++) sigaction(signals[i], &action, &kept[i]);

    int total = int(size[0] * size[1] * size[2]);
    if (!map_stacks()) total = 0;
    for (int b = 0; b < total && !stopped; b++) run_block(reverse ? total - 1 - b : b, reverse);
    if (stacks != MAP_FAILED) munmap(stacks, (STACK_BYTES + GUARD_BYTES) * count);

    for (int i = 0; i < 3; i++) sigaction(signals[i], &kept[i], nullptr);
    sigaltstack(&previous, nullptr);
    forget();
    fflush(stdout);
    return stacks == MAP_FAILED ? -1 : n_findings;
}
EXPORT const Finding *minipar_findings() { return findings; }

// Where each thread is, after a launch that could not go on: its Status, operation, mask, place.
// places: its own, then its callers', outermost first.
EXPORT int minipar_state(int thread, int *kind, unsigned *mask, uint32_t *places) {
    const Thread &t = threads[thread];
    *kind = t.kind, *mask = t.mask, *places = t.pc;
    memcpy(places + 1, t.callers, sizeof(uint32_t) * std::clamp(t.depth, 0, CALLERS));
    return t.status;
}
