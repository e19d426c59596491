// What the emulator watches of memory: bounds, initialisation, races. The compiler calls
// __tsan_read4(address) and its kind before every access (-fsanitize=thread, its runtime left out).
//
// Two accesses race if they touch the same number, one of them writes, not both are atomic, and
// nothing orders them: they are of different threads, with no __syncthreads() between them and,
// within a warp, no __syncwarp(). Shuffles order nothing. Across blocks, and inside of an interval,
// a __threadfence() and an atomic operation after it order what came before them and what comes
// after another thread's atomic operation on the same number: tickets, locks.
#pragma once
#include "emulator.h"
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <vector>

namespace emulator {

static Region arrays[64], variables[256];
static int n_arrays, n_variables;
static bool padding_is_read;
static Region *recent, *dynamic;  // the last one accessed; `extern __shared__`
static std::vector<uint32_t> starts;  // the first interval of each block, in the order of running
static std::vector<int> blocks;
// An atomic operation after a fence, and one that came after some of those on the same number.
struct Release { const void *address; uint32_t interval, thread, clock; };  // those of the fence
struct Acquire { const void *address; uint32_t interval, thread; size_t released; };
static std::vector<Release> released;
static std::vector<Acquire> acquired;  // of this block

struct Counts { uint64_t accesses, atomics, warp_operations, barriers, shared, dynamic; };
static Counts counts;

constexpr size_t ARENA = 1 << 20, MAX_SHARED = 227 << 10;  // a block's, dynamic, on sm_90
alignas(256) static char arena[ARENA];  // the shared memory of the one block that runs
alignas(256) static char dynamic_memory[MAX_SHARED];
static size_t arena_used;

static Region image;  // __device__ and __constant__ variables, with the library's other data

// Events are forgotten between launches: intervals begin anew. Untouched pages cost nothing.
static void watch_image() {
    void *cells = mmap(image.cells, size_t(library_end - library) * sizeof(Cell),
                       PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
                       | (image.cells ? MAP_FIXED : 0), -1, 0);
    image = {library, size_t(library_end - library), 1, false, false, true, "a __device__ variable",
             cells == MAP_FAILED ? nullptr : (Cell *)cells, nullptr};
}
static void forget() {
    for (Region *r = variables; r < variables + n_variables; r++)
        memset(r->cells, 0, r->bytes / r->unit * sizeof(Cell));
    for (Region *r = arrays; r < arrays + n_arrays; r++) free(r->cells);
    n_arrays = 0;
    recent = nullptr;
}

static Region *region_at(const char *a, size_t bytes) {
    for (int i = 0; i < n_variables + n_arrays; i++) {
        Region &r = i < n_variables ? variables[i] : arrays[i - n_variables];
        if (a >= r.base && a + bytes <= r.base + r.bytes) return &r;
    }
    return nullptr;
}

static Finding *found_in(Region *r, int kind, const char *a, size_t bytes, int access,
                         uint32_t pc, uint32_t other_pc = 0) {
    Finding *f = found(kind, pc, other_pc, r ? r->name : "");
    if (!f) return nullptr;
    f->access = access, f->bytes = bytes;
    f->offset = r ? a - r->base : (int64_t)a;
    if (r) f->size = r->bytes, f->unit = r->unit;
    return f;
}

// An address in no array: a __device__ variable, a table, or an error that ends the launch.
static Region *outside(const char *a, size_t bytes, int access, uint32_t pc) {
    char *stacks = threads[0].stack;
    if (size_t(a - stacks) < (STACK_BYTES + GUARD_BYTES) * count) {
        Finding *f = found_in(nullptr, STACK, a, bytes, access, pc);
        if (f) f->other_thread = int((a - stacks) / (STACK_BYTES + GUARD_BYTES));
        stop();
    }
    if (a >= library && a + bytes <= library_end
        && size_t(a - arena) >= ARENA && size_t(a - dynamic_memory) >= MAX_SHARED) return &image;
    Region *nearest = nullptr;
    uint64_t distance = 1ull << 30;
    for (int i = 0; i < n_variables + n_arrays; i++) {
        Region &r = i < n_variables ? variables[i] : arrays[i - n_variables];
        uint64_t d = a < r.base ? uint64_t(r.base - a)
                                : a + bytes > r.base + r.bytes ? uint64_t(a - r.base - r.bytes) : 0;
        if (d < distance && (!r.shared || r.used)) distance = d, nearest = &r;
    }
    found_in(nearest, nearest ? OUTSIDE : WILD, a, bytes, access, pc);
    stop();
}

// Whether a release after `e` has been acquired by the calling thread.
static bool fenced(const Event &e) {
    if (released.empty() || acquired.empty()) return false;
    size_t b = std::upper_bound(starts.begin(), starts.end(), e.interval) - starts.begin() - 1;
    uint32_t end = b + 1 < starts.size() ? starts[b + 1] : ~0u;
    for (size_t i = 0; i < released.size(); i++) {
        const Release &r = released[i];
        if (r.interval < e.interval || r.interval >= end) continue;  // before it, of another block
        if (r.interval == e.interval && (r.thread != e.thread || r.clock < e.clock)) continue;
        for (const Acquire &q : acquired)
            if (q.address == r.address && q.released > i
                && (q.interval < interval || q.thread == (uint32_t)now->index)) return true;
    }
    return false;
}

// Whether the calling thread knows that `e` has happened.
static inline bool ordered(const Event &e, const Region &r) {
    if (e.interval < block_start) return e.interval == 0 || r.shared || fenced(e);
    if (e.interval < interval || e.thread == (uint32_t)now->index) return true;
    return (e.thread / 32 == (uint32_t)now->warp && e.clock <= now->seen[e.thread % 32])
           || fenced(e);
}

// Of two slots, the first keeps the oldest event that still matters, the second the newest.
static inline void remember(Event *slot, const Event &e, const Region &r) {
    bool replace = slot[0].interval == 0 || (slot[0].interval >= block_start && ordered(slot[0], r))
                   || (r.shared && slot[0].interval < block_start);
    slot[replace ? 0 : 1] = e;
}

static void race(Region &r, const Event &e, int other, const char *a, size_t bytes, int access,
                 uint32_t pc) {
    Finding *f = found_in(&r, RACE, a, bytes, access, pc, e.pc);
    if (!f) return;
    size_t b = std::upper_bound(starts.begin(), starts.end(), e.interval) - starts.begin() - 1;
    f->other_access = other, f->other_thread = (int)e.thread, f->other_block = blocks[b];
}

static void follow(Region &r, const char *a, size_t bytes, int access, uint32_t pc) {
    Event e = {interval, (uint32_t)now->index, now->clock, pc};
    size_t first = (a - r.base) / r.unit, last = (a + bytes - 1 - r.base) / r.unit;
    for (size_t i = first; i <= last; i++) {
        Cell &c = r.cells[i];
        const Event *conflict = ordered(c.write, r) ? nullptr : &c.write;
        int other = WRITE;
        for (int k = 0; k < 2 && !conflict; k++) {
            if (access != READ && !ordered(c.read[k], r))
                conflict = &c.read[k], other = READ;
            if (access != ATOMIC && !ordered(c.atomic[k], r))
                conflict = &c.atomic[k], other = ATOMIC;
        }
        if (conflict)
            race(r, *conflict, other, r.base + i * r.unit, std::min<size_t>(bytes, r.unit), access,
                 pc);
        if (access == WRITE) c.write = e;
        else remember(access == READ ? c.read : c.atomic, e, r);
    }
}

// A thread that only reads, the same places over and over, waits for another: let that one run.
static inline void idle(const char *a, uint32_t pc) {
    if (now->idle++ == 0) now->probe = a, now->probed = 0;
    now->probed += now->probe == a;
    if (now->idle == 1 << 12) {
        now->idle = 0;
        if (now->probed > 1 << 9) now->spun = true, now->pc = pc, leave();
    }
}

static void check(const void *address, size_t bytes, int access, void *from) {
    const char *a = (const char *)address;
    if (!now || size_t(a - now->stack) < STACK_BYTES + GUARD_BYTES || !bytes) return;
    uint32_t pc = place(from);
    Region *r = recent;
    if (!r || a < r->base || a + bytes > r->base + r->bytes) {
        if (!(r = region_at(a, bytes))) r = outside(a, bytes, access, pc);
        if (r != &image) recent = r;  // the arena lies within it
    }
    counts.accesses++;
    r->used = true;
    if (access == WRITE) now->idle = 0;
    else idle(a, pc);
    if (access != READ && r->constant) found_in(r, CONSTANT, a, bytes, access, pc), stop();
    if (bytes <= 16 && !(bytes & (bytes - 1)) && (uintptr_t)a % bytes)
        found_in(r, MISALIGNED, a, bytes, access, pc), stop();
    if (r->written) {
        uint8_t *w = r->written + (a - r->base);
        // The padding of a structure is copied with it: one byte in four that was written will do.
        for (size_t i = 0; access != WRITE && !padding_is_read && i < bytes; i += 4)
            if (!memchr(w + i, 1, std::min<size_t>(4, bytes - i))) {
                found_in(r, UNINITIALISED, a + i, bytes, access, pc);
                break;
            }
        if (access != READ) memset(w, 1, bytes);
    }
    if (r->cells) follow(*r, a, bytes, access, pc);
}

// A block's shared memory holds nothing when it begins, and NaN if it is read all the same.
void block_begins(int number) {
    for (Region *r = variables; r < variables + n_variables; r++) {
        memset(r->base, 0xff, r->bytes);
        memset(r->written, 0, r->bytes);
        r->used = false;
    }
    starts.push_back(interval), blocks.push_back(number);
    acquired.clear();
    recent = nullptr;
}

// __syncwarp: each lane of the mask gets to know what all of them know.
void synchronise(unsigned mask, int warp) {
    Thread *w = threads + 32 * warp;
    uint32_t known[32] = {};
    for (int l = 0; l < 32; l++)
        if (mask >> l & 1) {
            w[l].seen[l] = w[l].clock++;
            for (int k = 0; k < 32; k++) known[k] = std::max(known[k], w[l].seen[k]);
        }
    for (int l = 0; l < 32; l++)
        if (mask >> l & 1) memcpy(w[l].seen, known, sizeof known);
}
}

using namespace emulator;
#define HERE __builtin_return_address(0)
#define EXPORT extern "C" __attribute__((visibility("default")))

extern "C" {

void *minipar_shared(int *key, const char *name, size_t bytes, unsigned unit) {
    if (!*key) {
        if (n_variables == 256 || arena_used + bytes + 512 > ARENA) {
            if (!now) {  // outside of any kernel, while the file is loaded
                fprintf(stderr, "minipar: %zu bytes of __shared__ %s\n", bytes, name);
                abort();
            }
            if (Finding *f = found(TOO_MUCH_SHARED, place(HERE))) f->size = arena_used + bytes;
            stop();
        }
        variables[n_variables] = {arena + arena_used, bytes, unit, false, true, true, name,
                                  (Cell *)calloc(bytes / unit + 1, sizeof(Cell)),
                                  (uint8_t *)calloc(bytes, 1)};
        memset(arena + arena_used, 0xff, bytes);
        arena_used += (bytes + 511) / 256 * 256;
        *key = ++n_variables;
    }
    variables[*key - 1].used = true;
    return variables[*key - 1].base;
}

// `extern __shared__`: one variable, whatever its name, in which races are told apart by the byte.
void *minipar_dynamic(const char *name) {
    if (!dynamic) {
        dynamic = variables + n_variables++;
        *dynamic = {dynamic_memory, 0, 1, false, true, true, name,
                    (Cell *)calloc(MAX_SHARED, sizeof(Cell)), (uint8_t *)calloc(MAX_SHARED, 1)};
    }
    if (dynamic->bytes != counts.dynamic) {
        dynamic->bytes = counts.dynamic;
        memset(dynamic_memory, 0xff, dynamic->bytes);
    }
    dynamic->name = name, dynamic->used = true;
    return dynamic_memory;
}

void minipar_fence() {
    if (now) now->fenced = true, now->fence_interval = interval, now->fence_clock = now->clock++;
}
void minipar_changed() { now->idle = 0; }
void minipar_atomic(void *address, size_t bytes, void *pc) {
    check(address, bytes, ATOMIC, pc);
    counts.atomics++;
    uint32_t me = now->index;
    if (!released.empty()) {
        auto last = std::find_if(acquired.begin(), acquired.end(), [=](const Acquire &q) {
            return q.address == address && q.interval == interval && q.thread == me;
        });
        if (last == acquired.end()) acquired.push_back({address, interval, me, released.size()});
        else last->released = released.size();
    }
    if (now->fenced) released.push_back({address, now->fence_interval, me, now->fence_clock});
}

#define ACCESSES(n)                                                                               \
    void __tsan_read##n(void *a) { check(a, n, READ, HERE); }                                     \
    void __tsan_write##n(void *a) { check(a, n, WRITE, HERE); }                                   \
    void __tsan_volatile_read##n(void *a) { check(a, n, READ, HERE); }                            \
    void __tsan_volatile_write##n(void *a) { check(a, n, WRITE, HERE); }                          \
    void __tsan_unaligned_read##n(void *a) { check(a, n, READ, HERE); }                           \
    void __tsan_unaligned_write##n(void *a) { check(a, n, WRITE, HERE); }                         \
    void __tsan_read_write##n(void *a) { check(a, n, READ, HERE), check(a, n, WRITE, HERE); }     \
    void __tsan_unaligned_read_write##n(void *a) {                                                \
        check(a, n, READ, HERE), check(a, n, WRITE, HERE);                                        \
    }
ACCESSES(1) ACCESSES(2) ACCESSES(4) ACCESSES(8) ACCESSES(16)
void __tsan_read_range(void *a, size_t n) { check(a, n, READ, HERE); }
void __tsan_write_range(void *a, size_t n) { check(a, n, WRITE, HERE); }
void *__tsan_memcpy(void *to, const void *from, size_t n) {
    check(from, n, READ, HERE), check(to, n, WRITE, HERE);
    return memmove(to, from, n);
}
void *__tsan_memset(void *to, int value, size_t n) {
    check(to, n, WRITE, HERE);
    return memset(to, value, n);
}
void __tsan_vptr_update(void **, void *) {}
void __tsan_vptr_read(void **) {}
void __tsan_init() {}
void __tsan_func_entry(void *from) {
    if (now && now->depth++ < CALLERS) now->callers[now->depth - 1] = place(from);
}
void __tsan_func_exit() { if (now) now->depth--; }
}

// How Python declares the arrays of a launch.
EXPORT void minipar_array(const char *name, void *base, size_t bytes, unsigned unit, int constant) {
    arrays[n_arrays++] = {(char *)base, bytes, unit, constant != 0, false, true, name,
                          constant ? nullptr : (Cell *)calloc(bytes / unit + 1, sizeof(Cell)),
                          nullptr};
}
EXPORT Counts *minipar_counts() { return &counts; }
