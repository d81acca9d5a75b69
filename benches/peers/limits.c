// What a machine can do at most, as JSON: bytes read from memory a second, and 8-bit multiply-adds a second.
//
//     cc -O3 -march=native -pthread limits.c -o limits && ./limits THREADS MIB ROUNDS
//
// Reading: MIB mebibytes in huge pages, far more than the caches hold, an equal part for each thread, which reads it once
// from several places at a time (1 to 16 streams, the best count is the answer). Multiply-adds: vpdpbusd on registers alone, 12
// independent sums a thread; null where the processor, or the compiler, has none. Each is the median of ROUNDS.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#if defined(__AVX512VNNI__)
#include <immintrin.h>
typedef __m512i Lanes;
#define DOT(sum, a, b) _mm512_dpbusd_epi32(sum, a, b)
#define LANES 64
#elif defined(__AVXVNNI__)
#include <immintrin.h>
typedef __m256i Lanes;
#define DOT(sum, a, b) _mm256_dpbusd_avx_epi32(sum, a, b)
#define LANES 32
#endif

enum { SUMS = 12, DOTS = 4000000, MOST_ROUNDS = 1000 };

typedef uint64_t Words __attribute__((vector_size(64)));

typedef struct {
    char *bytes;
    size_t len;
    int streams;
    uint64_t seen;
    void (*work)(void *);
    pthread_barrier_t *start, *end;
} Part;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int n) {
    qsort(values, n, sizeof *values, ascending);
    return (values[(n - 1) / 2] + values[n / 2]) / 2;
}

static void touch(void *argument) {
    Part *part = argument;
    for (size_t at = 0; at < part->len; at += 4096) part->bytes[at] = 1;
}

// Four cache lines of each stream in turn.
static void read_all(void *argument) {
    Part *part = argument;
    size_t each = part->len / part->streams / 256 * 256;
    Words sum[4] = {{0}};
    for (size_t at = 0; at < each; at += 256)
        for (int stream = 0; stream < part->streams; stream++) {
            const Words *from = (const Words *)(part->bytes + stream * each + at);
            for (int line = 0; line < 4; line++) sum[line] ^= from[line];
        }
    sum[0] ^= sum[1] ^ sum[2] ^ sum[3];
    part->seen += sum[0][0] ^ sum[0][7];
}

#ifdef LANES
// Twelve variables and not an array, so that none of them lies in memory.
#define EACH(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11)
#define DECLARE(s) Lanes sum##s = {0};
#define STEP(s) sum##s = DOT(sum##s, a, b); __asm__ volatile("" : "+v"(sum##s));
#define TAKE(s) part->seen += (uint64_t)sum##s[0];

static void multiply(void *argument) {
    Part *part = argument;
    Lanes a = {0}, b = {0};
    EACH(DECLARE)
    for (int i = 0; i < DOTS; i++) {
        EACH(STEP)
    }
    EACH(TAKE)
}
#endif

static void *thread(void *argument) {
    Part *part = argument;
    for (;;) {
        pthread_barrier_wait(part->start);
        if (!part->work) return NULL;
        part->work(part);
        pthread_barrier_wait(part->end);
    }
}

// Seconds that all parts take to do this once.
static double once(Part *parts, int n, void (*work)(void *), int streams) {
    for (int i = 0; i < n; i++) {
        parts[i].work = work;
        parts[i].streams = streams;
    }
    double start = now();
    pthread_barrier_wait(parts[0].start);
    if (!work) return 0;
    pthread_barrier_wait(parts[0].end);
    return now() - start;
}

int main(int argc, char **argv) {
    int n = argc > 1 ? atoi(argv[1]) : 0, rounds = argc > 3 ? atoi(argv[3]) : 0;
    size_t mib = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;
    if (n < 1 || mib < 1 || rounds < 1 || rounds > MOST_ROUNDS) {
        fprintf(stderr, "limits THREADS MIB ROUNDS, each at least 1\n");
        return 2;
    }
    size_t each = (mib << 20) / n / 4096 * 4096, huge = 2 << 20, len = each * n + huge;
    char *map = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    Part *parts = calloc(n, sizeof *parts);
    if (map == MAP_FAILED || !parts) {
        perror("limits: memory");
        return 1;
    }
    char *bytes = (char *)(((uintptr_t)map + huge - 1) / huge * huge);
    madvise(bytes, len - huge, MADV_HUGEPAGE);
    pthread_barrier_t start, end;
    pthread_barrier_init(&start, NULL, n + 1);
    pthread_barrier_init(&end, NULL, n + 1);
    pthread_t *threads = calloc(n, sizeof *threads);
    for (int i = 0; i < n; i++) {
        parts[i] = (Part){.bytes = bytes + i * each, .len = each, .start = &start, .end = &end};
        if (!threads || pthread_create(&threads[i], NULL, thread, &parts[i])) {
            perror("limits: threads");
            return 1;
        }
    }
    once(parts, n, touch, 1);

    double times[MOST_ROUNDS], best = 0;
    int best_streams = 0;
    for (int streams = 1; streams <= 16; streams *= 2) {
        for (int r = 0; r < rounds; r++) times[r] = once(parts, n, read_all, streams);
        double read = (double)(each / streams / 256 * 256) * streams * n, speed = read / median(times, rounds) / 1e9;
        if (speed > best) best = speed, best_streams = streams;
    }
    printf("{\"threads\": %d, \"read_gb_s\": %.2f, \"streams\": %d, ", n, best, best_streams);
#ifdef LANES
    for (int r = 0; r < rounds; r++) times[r] = once(parts, n, multiply, 1);
    printf("\"vpdpbusd_gmac_s\": %.1f}\n", (double)LANES * SUMS * DOTS * n / median(times, rounds) / 1e9);
#else
    printf("\"vpdpbusd_gmac_s\": null}\n");
#endif
    uint64_t seen = 0;
    once(parts, n, NULL, 1);
    for (int i = 0; i < n; i++) {
        pthread_join(threads[i], NULL);
        seen += parts[i].seen;
    }
    // Nothing that was read is left unused, or the compiler might leave out the reading.
    return seen == 1;
}
