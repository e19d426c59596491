// The emulator's state: threads, memory that is watched, and what was found wrong.
#pragma once
#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <ucontext.h>

namespace emulator {

enum Status { READY, AT_BARRIER, IN_WARP, DONE };
enum Access { READ, WRITE, ATOMIC };

// The order of findings.py's list.
enum Kind { RACE, UNINITIALISED, OUTSIDE, WILD, CONSTANT, MISALIGNED, STACK, DIVERGED, NOT_IN_MASK,
            ABSENT_LANE, WAITS, FAULT, TRAP, ASSERTION, TOO_MUCH_SHARED };

constexpr int CALLERS = 12, MAX_THREADS = 1024, MAX_FINDINGS = 8;
constexpr size_t STACK_BYTES = 128 << 10, GUARD_BYTES = 16 << 10;

// What Python reads (findings.py has the same structure).
struct Finding {
    int kind, access, other_access, block, thread, other_block, other_thread, line;
    unsigned mask;
    int lane;
    uint64_t bytes, size, unit;
    int64_t offset;  // of the access, from the beginning of the variable
    uint32_t pc, other_pc, callers[CALLERS];
    char name[64];
};

// Which thread did something, and when. Intervals are numbered over the whole launch, from 1; a
// barrier ends one. `clock` counts a thread's __syncwarp and
// __threadfence.
struct Event {
    uint32_t interval, thread, clock, pc;
};

// The last events of one number in memory. Two of a kind that do not exclude each other: for any
// thread that writes later, at least one of the two is another thread's.
struct Cell {
    Event write, read[2], atomic[2];
};

struct Region {
    char *base;
    size_t bytes;
    unsigned unit;
    bool constant, shared, used;
    const char *name;
    Cell *cells;       // one for each `unit` bytes; none if nobody can write
    uint8_t *written;  // shared memory: for each byte, whether this block has written it
};

struct Thread {
    jmp_buf state;
    ucontext_t start;
    char *stack;
    bool started, spun, fenced;
    Status status;
    int index, warp, lane, kind, value, result, depth, width, source;
    unsigned mask;
    uint64_t bits;
    uint32_t pc, callers[CALLERS], fence_interval, fence_clock;
    uint32_t clock, seen[32];  // seen: the clocks of its warp that it knows
    const void *probe;
    unsigned idle, probed;
};

// The launch.
extern Thread threads[MAX_THREADS], *now;
extern int count, block;
extern uint32_t interval, block_start;
extern char *library, *library_end;  // where the built file is loaded

[[noreturn]] void stop();  // end the launch, from a thread
void leave();              // let the other threads run
Finding *found(int kind, uint32_t pc, uint32_t other_pc = 0, const char *name = "");
uint32_t place(void *pc);  // as an offset in the library

// memory.h
void block_begins(int block);
void synchronise(unsigned mask, int warp);
}
