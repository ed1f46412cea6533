// CUDA's words in C++, for a machine without a GPU: the blocks of a kernel run one after the other,
// and the threads of a block by turns, each from one barrier to the next.
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

using std::max;
using std::min;

struct Dim3 { unsigned x, y, z; };
static Dim3 blockIdx{0, 0, 0}, threadIdx{0, 0, 0}, blockDim{1, 1, 1}, gridDim{1, 1, 1};

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("block_shared")))
#define __syncthreads() rest(__LINE__)

enum { MOST = 1024, STACK = 1 << 16 };  // threads, and bytes of each one's stack
static struct { jmp_buf at; bool begun; int line; } threads[MOST];
static char stacks[MOST][STACK] __attribute__((aligned(64)));
static jmp_buf turns;
static int present;
static void (*body)(void**);
static void** arguments;

// Let others have their turns: at the barrier in a line, or, 0, at the end.
__attribute__((noinline)) static void rest(int line) {
    __asm__ volatile("" ::: "memory");  // others write to what is shared
    threads[present].line = line;
    if (_setjmp(threads[present].at) == 0) _longjmp(turns, 1);
}

static void live() {
    for (;;) {
        body(arguments);
        rest(0);
    }
}

__attribute__((noinline)) static void resume(int thread) {
    present = threadIdx.x = thread;
    if (_setjmp(turns)) return;
    if (threads[thread].begun) _longjmp(threads[thread].at, 1);
    threads[thread].begun = true;
    ucontext_t start;  // for the first turn alone: it asks the kernel, and takes 50 times as long
    getcontext(&start);
    start.uc_stack.ss_sp = stacks[thread];
    start.uc_stack.ss_size = STACK;
    start.uc_link = nullptr;
    makecontext(&start, live, 0);
    setcontext(&start);
}

// What a parameter takes: NumPy's kind and size, after a * where it is an array.
template <class T> struct Kind {
    static std::string text() {
        const char* kind = std::is_floating_point<T>() ? "f" : std::is_signed<T>() ? "i" : "u";
        return kind + std::to_string(sizeof(T));
    }
};
template <class T> struct Kind<T*> { static std::string text() { return "*" + Kind<T>::text(); } };

template <class... A> std::string kinds_of(void (*)(A...)) {
    std::string all;
    for (const std::string& one : {Kind<A>::text()...}) all += (all.empty() ? "" : " ") + one;
    return all;
}

template <class... A, size_t... I>
void call(void (*kernel)(A...), void** given, std::index_sequence<I...>) {
    kernel(*(A*)given[I]...);
}
template <class... A> void call(void (*kernel)(A...), void** given) {
    call(kernel, given, std::index_sequence_for<A...>());
}

struct Kernel { const char* name; std::string kinds; void (*run)(void**); };
#define KERNEL(name) {#name, kinds_of(name), [](void** given) { call(name, given); }}
extern const std::vector<Kernel> kernels;

extern char __start_block_shared __attribute__((weak, visibility("hidden")));
extern char __stop_block_shared __attribute__((weak, visibility("hidden")));

extern "C" const char* kinds(const char* name) {
    for (const Kernel& kernel : kernels)
        if (!strcmp(kernel.name, name)) return kernel.kinds.c_str();
    return nullptr;
}

// Run a kernel, its blocks and threads in an order drawn by `seed`; 0 for theirs. Gives the line of
// a barrier at which not all threads of a block met, or 0.
extern "C" int launch(const char* name, int blocks, int block, unsigned seed, void** given) {
    for (const Kernel& kernel : kernels)
        if (!strcmp(kernel.name, name)) body = kernel.run;
    arguments = given;
    gridDim.x = blocks;
    blockDim.x = block;
    std::minstd_rand random(seed);
    std::vector<int> grid(blocks), order(block);
    std::iota(grid.begin(), grid.end(), 0);
    std::iota(order.begin(), order.end(), 0);
    if (seed) std::shuffle(grid.begin(), grid.end(), random);
    for (int b : grid) {
        blockIdx.x = b;
        if (&__start_block_shared)  // to start with it is anything: NaN
            memset(&__start_block_shared, 255, &__stop_block_shared - &__start_block_shared);
        do {
            if (seed) std::shuffle(order.begin(), order.end(), random);
            for (int t : order) resume(t);
            for (int t = 1; t < block; t++) {
                if (threads[t].line == threads[0].line) continue;
                for (auto& thread : threads) thread.begun = false;
                return max(threads[t].line, threads[0].line);
            }
        } while (threads[0].line);
    }
    return 0;
}
