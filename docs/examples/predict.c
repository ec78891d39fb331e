#include <berxit.h>
#include <stdio.h>

int main(int count, char **arguments) { /* predict BUNDLE TEXT... */
    berxit_runner *runner;
    if (count < 3 || berxit_load(arguments[1], NULL, &runner) != BERXIT_OK)
        return fprintf(stderr, "%s\n", count < 3 ? "usage: predict BUNDLE TEXT..." : berxit_error()), 1;
    for (int i = 2; i < count; ++i) {
        berxit_text text = {.text = arguments[i]};
        berxit_result *result;
        if (berxit_predict(runner, &text, 1, NULL, &result) != BERXIT_OK)
            return fprintf(stderr, "%s\n", berxit_error()), 1;
        const berxit_prediction *found = berxit_result_at(result, 0);
        printf("%s: %s (%.3f), layer %d, %.2f ms\n", text.text, found->label, found->value, found->exit_layer, found->latency_ms);
        berxit_result_free(result);
    }
    berxit_free(runner);
    return 0;
}
