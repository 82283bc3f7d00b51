// A fixed piece of work, the same on every machine: what it takes there makes the times of two runs
// comparable. Prints the CPU seconds of ten sorts of 2^20 numbers by heapsort, which is bound by
// branches and caches, as compilers are.
#include <stdint.h>
#include <stdio.h>
#include <time.h>

enum { COUNT = 1 << 20, ROUNDS = 10 };
static uint32_t heap[COUNT];

static void sift(uint32_t at, uint32_t count) {
    const uint32_t moved = heap[at];
    for (uint32_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && heap[child + 1] > heap[child]) child++;
        if (heap[child] <= moved) break;
        heap[at] = heap[child];
    }
    heap[at] = moved;
}

int main(void) {
    uint32_t x = 1, sum = 0;
    const clock_t start = clock();
    for (int round = 0; round < ROUNDS; round++) {
        for (uint32_t i = 0; i < COUNT; i++) {
            x ^= x << 13, x ^= x >> 17, x ^= x << 5;
            heap[i] = x;
        }
        for (uint32_t i = COUNT / 2; i-- > 0;) sift(i, COUNT);
        for (uint32_t end = COUNT - 1; end > 0; end--) {
            const uint32_t largest = heap[0];
            heap[0] = heap[end];
            heap[end] = largest;
            sift(0, end);
        }
        sum ^= heap[COUNT / 2];
    }
    printf("%.2f\n", (double)(clock() - start) / CLOCKS_PER_SEC);
    return sum == 0;
}
