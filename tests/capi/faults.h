/* What the tables of faults share: a wrong call is refused with the status and the field that the
 * header says, with a place for the detail and without, and leaves everything as it was.
 *
 * A file that includes this has defined before:
 *   struct world, all that its calls use; it is `w` where they stand,
 *   struct state, all that a caller can see of it, without padding that is not set,
 *   struct state look(const struct world*).
 */
#ifndef FAULTS_H
#define FAULTS_H

#include "check.h"

static unsigned num_refused;

static void compare(const struct world* w, const struct state* before, inflight_status status,
                    inflight_status wanted, const inflight_error* error, const char* field,
                    const char* call, const char* file, int line) {
    struct state after = look(w);
    int as_it_was = memcmp(before, &after, sizeof after) == 0;
    int detail = error == NULL || (error->code == wanted && error->message[0] != 0 &&
                                   strcmp(error->field, field) == 0);
    if (status != wanted || !as_it_was || !detail) {
        fprintf(stderr, "%s:%d: %s\n  status %d, not %d; field '%s', not '%s'; %s\n", file, line,
                call, status, wanted, error == NULL ? field : error->field, field,
                as_it_was ? "state as before" : "state changed");
        exit(EXIT_FAILURE);
    }
    num_refused++;
}

/* `call` uses `error`: with a place for the detail, and without. */
#define REFUSED(wanted, name, call)                                                   \
    do {                                                                              \
        struct state before = look(&w);                                               \
        inflight_error detail = new_error(), *error = &detail;                        \
        inflight_status status = (call);                                              \
        compare(&w, &before, status, wanted, error, name, #call, __FILE__, __LINE__); \
        error = NULL;                                                                 \
        status = (call);                                                              \
        compare(&w, &before, status, wanted, error, name, #call, __FILE__, __LINE__); \
    } while (0)

/* What the message says. */
#define SAYS(text, call)                             \
    do {                                             \
        inflight_error detail = new_error();         \
        inflight_error* error = &detail;             \
        CHECK((call) != INFLIGHT_STATUS_OK);         \
        CHECK(strstr(error->message, text) != NULL); \
    } while (0)

#define BAD INFLIGHT_STATUS_INVALID_ARGUMENT
#define SIZE INFLIGHT_STATUS_STRUCT_SIZE
#define ABOVE_MAX ((uint32_t)INFLIGHT_MAX_COUNT + 1)
#define MISALIGNED(pointer) ((void*)((char*)(pointer) + 1))

/* A struct of a later version, larger than this library's. */
#define NEWER(type)              \
    struct {                     \
        type known;              \
        unsigned char later[24]; \
    }

/* Every wrong size of a struct that `call` reads or writes through `value`. */
#define REFUSED_SIZES(value, name, call)                                               \
    do {                                                                               \
        size_t sizes[] = {0, 1, sizeof(size_t), sizeof(value) - 1, 1 << 20, SIZE_MAX}; \
        size_t right = (value).struct_size;                                            \
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {                    \
            (value).struct_size = sizes[i];                                            \
            REFUSED(SIZE, name, call);                                                 \
        }                                                                              \
        (value).struct_size = right;                                                   \
    } while (0)

/* The same call with one field of `value` wrong, which is right again afterwards. */
#define REFUSED_FIELD(value, assignment, name, call) \
    do {                                             \
        __typeof__(value) right_value = (value);     \
        (value).assignment;                          \
        REFUSED(BAD, name, call);                    \
        (value) = right_value;                       \
    } while (0)

#endif
