/* Runs a bundle of berxit-export for ONNX Runtime: one or several labels of a text, a value, or labelled spans.
 *
 *     berxit_runner *runner;
 *     berxit_result *result;
 *     berxit_text text = {.text = "turn the kitchen lights off"};
 *     if (berxit_load("bundle", NULL, &runner) != BERXIT_OK ||
 *         berxit_predict(runner, &text, 1, NULL, &result) != BERXIT_OK)
 *         return fprintf(stderr, "%s\n", berxit_error()), 1;
 *     printf("%s\n", berxit_result_at(result, 0)->label);
 *
 * Texts are UTF-8. Every function can be called from several threads; one stream belongs to one thread at a time. No
 * exception leaves a function. A process that forks must load its runners after the fork. */
#ifndef BERXIT_H
#define BERXIT_H

#include <stddef.h>

#if defined(__GNUC__)
#define BERXIT_API __attribute__((visibility("default")))
#else
#define BERXIT_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    BERXIT_OK = 0,
    BERXIT_INPUT = 1,   /* the caller can fix it by another argument */
    BERXIT_FAILURE = 2, /* the bundle, ONNX Runtime or the device failed */
    BERXIT_MEMORY = 3   /* out of memory */
} berxit_status;

/* Why an input exited. BERXIT_NOT_YET: in a stream, before the last layer. */
typedef enum { BERXIT_NOT_YET = 0, BERXIT_CERTAINTY = 1, BERXIT_DEADLINE = 2, BERXIT_LAST_LAYER = 3 } berxit_stopped_by;

typedef struct berxit_runner berxit_runner;
typedef struct berxit_result berxit_result;
typedef struct berxit_stream berxit_stream;

/* Options of berxit_load. berxit_options_init sets the defaults. */
typedef struct {
    const char *onnxruntime; /* path of libonnxruntime; NULL: BERXIT_ONNXRUNTIME, then the default names */
    int threads;             /* 0: the bundle's, else the number of cores, at most 4 */
    int pool;                /* 1 (default): one thread pool for all runners of the process, of one size. 0: a pool per segment */
    int spinning;            /* 1 (default): the pool's threads wait busily for the next layer; 0 saves energy, costs latency */
    int verify;              /* 1 (default): check the sha256 of every file */
    double miss_probability; /* largest share of calls that may miss their deadline although their first exit was in time */
} berxit_options;

/* One input: a text, or a pair. A size of 0 means that the text ends with a null byte. */
typedef struct {
    const char *text;
    const char *pair; /* NULL for a single text */
    size_t text_size, pair_size;
} berxit_text;

/* Settings of one call. berxit_call_init sets the defaults. */
typedef struct {
    double threshold;   /* replaces the calibrated thresholds at every layer; NaN (default): the bundle's */
    double deadline_ms; /* milliseconds from the call; NaN (default): none. The first exit is always computed */
} berxit_call;

/* A labelled span of a text (tokens): its bytes `start` to before `end`. */
typedef struct {
    size_t start, end;
    const char *label;
    float score; /* smallest probability of the tags of its words */
} berxit_span;

/* The prediction for one input. */
typedef struct {
    const char *label;    /* the class name; multilabel: the labels, heads: HEAD=CLASS of each head, joined by "|"; tokens: the
                           * IOB2 tags of the words, joined by blanks; NULL for regression */
    float value;          /* the value for regression; the label's probability for classification; otherwise 0 */
    const float *scores;  /* one probability per class or label, in the order of berxit_label; for regression one value */
    size_t score_count;   /* 0 for tokens */
    int label_index;      /* index of the class; -1 for other kinds than classification */
    int exit_layer;       /* number of layers that were executed, from 1 */
    float certainty;      /* of the exit criterion at that layer */
    double latency_ms;    /* from the call until this input exited; in a stream without the time between two calls */
    int truncated;        /* 1: the text had more tokens than the model accepts, or than could be read in time */
    berxit_stopped_by stopped_by;
    int late;             /* 1: latency_ms exceeds the deadline; 0: it does not; -1: without a deadline */
    const char *const *labels; /* multilabel: the labels of the text; heads: that of each head; in the order of berxit_label */
    size_t label_count;
    const berxit_span *spans;  /* tokens: the spans of the text, in their order */
    size_t span_count;
} berxit_prediction;

/* Properties of a loaded bundle. */
typedef struct {
    const char *precision, *task, *metric;
    const char *model; /* the first 12 hexadecimal digits of the sha256 of manifest.json */
    const char *onnxruntime;
    int regression, pairs, layers, exits, max_length;
    size_t label_count;
} berxit_info;

/* The message of the last function of this thread that failed, in one line. Valid until the next failure. */
BERXIT_API const char *berxit_error(void);

BERXIT_API void berxit_options_init(berxit_options *options);
BERXIT_API void berxit_call_init(berxit_call *call);

/* Loads a bundle: the path of its folder. `options` NULL: the defaults. */
BERXIT_API berxit_status berxit_load(const char *bundle, const berxit_options *options, berxit_runner **runner);
/* Frees a runner; NULL is allowed. Results and streams stay valid. No other call may use the runner. */
BERXIT_API void berxit_free(berxit_runner *runner);

BERXIT_API berxit_info berxit_info_of(const berxit_runner *runner);
/* The kind of the model: "classification", "regression", "multilabel", "tokens" or "heads". */
BERXIT_API const char *berxit_kind(const berxit_runner *runner);
/* The name of a class, label or tag; NULL if the index is out of range. */
BERXIT_API const char *berxit_label(const berxit_runner *runner, size_t index);

/* Predicts any number of inputs; the results have their order. `call` NULL: the defaults. A large batch is split into parts
 * of similar length, and inputs that exit are removed from the batch. The deadline applies to all inputs together. */
BERXIT_API berxit_status berxit_predict(
    berxit_runner *runner, const berxit_text *texts, size_t count, const berxit_call *call, berxit_result **result);
BERXIT_API size_t berxit_result_count(const berxit_result *result);
/* A prediction, valid until berxit_result_free; NULL if the index is out of range. */
BERXIT_API const berxit_prediction *berxit_result_at(const berxit_result *result, size_t index);
BERXIT_API void berxit_result_free(berxit_result *result);

/* The predictions of all exits of one input, the shallowest first. A layer runs when berxit_stream_next asks for it. */
BERXIT_API berxit_status berxit_stream_open(berxit_runner *runner, const berxit_text *text, berxit_stream **stream);
/* Sets `prediction` to the next one, valid until the next call; to NULL after the last exit. */
BERXIT_API berxit_status berxit_stream_next(berxit_stream *stream, const berxit_prediction **prediction);
BERXIT_API void berxit_stream_free(berxit_stream *stream);

/* Runs the golden inputs through all layers and compares every exit with the checkpoint. Fails if token ids differ, or a
 * difference is larger than the bundle allows. `largest` may be NULL; otherwise it receives the largest difference. */
BERXIT_API berxit_status berxit_check(berxit_runner *runner, double *largest);

#ifdef __cplusplus
}
#endif

#endif
