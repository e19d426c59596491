// How Python calls a kernel that is compiled for the CPU: as a builtin function, which is handed
// its arguments as they are. To convert them in Python takes ten times as long as a small kernel.
//
// Python's and NumPy's headers need not be there, nor a library to link with: the layout of arrays
// is written out, and the functions of Python's stable interface are given by address. HEAD is the
// size of an object's head; GRAIN and BLOCKS say how a launch is cut (compiled.py).
#pragma once
#ifdef _OPENMP
#include <omp.h>
#endif
#include <cstddef>
#include <type_traits>

#define EXPORT extern "C" __attribute__((visibility("default")))

// NumPy's array object as its C interface lays it out (ndarraytypes.h), after Python's own head.
struct Descriptor { char head[HEAD]; void *type; char kind, code, order, flags; int number; };
struct Array { char head[HEAD - sizeof(void *)]; void *type; char *data; int nd;
               ptrdiff_t *dims; void *strides, *base; Descriptor *descr; int flags; };

struct Python {
    long long (*as_int)(void *);                 // PyLong_AsLongLong
    unsigned long long (*as_bits)(void *);       // PyLong_AsUnsignedLongLongMask
    double (*as_float)(void *);                  // PyFloat_AsDouble
    int (*is_true)(void *);                      // PyObject_IsTrue
    void *(*error)();                            // PyErr_Occurred
    void *(*call)(void *, const char *, ...);    // PyObject_CallFunction
    void (*take)(void *), (*drop)(void *);       // Py_IncRef, Py_DecRef
    void *(*release)(), (*acquire)(void *);      // PyEval_SaveThread, PyEval_RestoreThread
    void *none, *get_num_threads;                // objects
};
static Python python;
static void *array_type;

// Called once, with an array of one float: where its element is, if arrays are laid out as above.
EXPORT void *minipar_begin(Array *a, const Python *functions) {
    array_type = a->type;
    python = *functions;
    return a->nd == 1 && a->descr->number == 11 && (a->flags & 0x501) == 0x501 ? a->data : 0;
}

// Why the kernel cannot take the array, 0 if it can.
static inline int misfit(Array *a, int number, int write) {
    if (a->type != array_type) return 4;
    if (a->descr->number != number || a->descr->order == '>') return 1;
    if ((a->flags & 0x101) != 0x101) return 2;  // C-contiguous and aligned
    return write && !(a->flags & 0x400) ? 3 : 0;
}

static inline ptrdiff_t elements(Array *a) {
    ptrdiff_t n = 1;
    for (int i = 0; i < a->nd; i++) n *= a->dims[i];
    return n;
}

// A number; after one that does not fit, python.error() is not 0.
template <class N> static inline N number(void *object) {
    if constexpr (std::is_same<N, bool>::value) return python.is_true(object) == 1;
    else if constexpr (std::is_floating_point<N>::value) return N(python.as_float(object));
    else if constexpr (std::is_unsigned<N>::value) return N(python.as_bits(object));
    else return N(python.as_int(object));
}

// How many threads a launch over so many elements takes; 0 after an error.
static inline int threads_for(ptrdiff_t most) {
    if (most < 2 * GRAIN) return 1;
    void *answer = python.call(python.get_num_threads, 0);
    if (!answer) return 0;
    int threads = number<int>(answer);
    python.drop(answer);
    return threads;
}

static inline int blocks_for(ptrdiff_t most, int threads) {
    if (threads == 1 || most < 2 * GRAIN) return 1;
    return int(most / GRAIN < BLOCKS * threads ? most / GRAIN : BLOCKS * threads);
}

// Other threads may run Python during a launch that takes longer than to let them.
struct Aside {
    void *state;
    explicit Aside(ptrdiff_t most) : state(most < 4096 ? 0 : python.release()) {}
    ~Aside() { if (state) python.acquire(state); }
};

static inline void *nothing() {
    python.take(python.none);
    return python.none;
}
