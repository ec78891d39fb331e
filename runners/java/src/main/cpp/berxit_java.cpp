// JNI functions of berxit.EarlyExitRunner over the C API.
#include <jni.h>

#include <memory>
#include <string>
#include <vector>

#include "berxit.h"

namespace {

// The bytes of a Java array; empty and `given` false for null.
struct Bytes {
    std::string text;
    bool given = false;
    Bytes(JNIEnv* env, jbyteArray array) {
        if (!array) return;
        given = true;
        text.resize(static_cast<size_t>(env->GetArrayLength(array)));
        env->GetByteArrayRegion(array, 0, static_cast<jsize>(text.size()), reinterpret_cast<jbyte*>(&text[0]));
    }
    const char* or_null() const { return given ? text.c_str() : nullptr; }
};

jbyteArray array_of(JNIEnv* env, const char* text) {
    const std::string bytes = text;
    jbyteArray array = env->NewByteArray(static_cast<jsize>(bytes.size()));
    if (array)
        env->SetByteArrayRegion(array, 0, static_cast<jsize>(bytes.size()), reinterpret_cast<const jbyte*>(bytes.data()));
    return array;
}

// Throws the Java exception of a failed call. Returns true if the call failed.
bool failed(JNIEnv* env, berxit_status status) {
    if (status == BERXIT_OK) return false;
    const char* name = status == BERXIT_INPUT ? "java/lang/IllegalArgumentException"
        : status == BERXIT_MEMORY             ? "java/lang/OutOfMemoryError"
                                              : "berxit/BerxitException";
    // ThrowNew reads modified UTF-8: the message is passed as a String that Java decodes.
    jclass kind = env->FindClass(name), string = env->FindClass("java/lang/String");
    if (!kind || !string) return true;
    jmethodID create = env->GetMethodID(kind, "<init>", "(Ljava/lang/String;)V");
    jmethodID decode = env->GetMethodID(string, "<init>", "([BLjava/lang/String;)V");
    jbyteArray bytes = array_of(env, berxit_error());
    jstring utf8 = env->NewStringUTF("UTF-8");
    if (!create || !decode || !bytes || !utf8) return true;
    jobject message = env->NewObject(string, decode, bytes, utf8);
    jobject exception = message ? env->NewObject(kind, create, message) : nullptr;
    if (exception) env->Throw(static_cast<jthrowable>(exception));
    return true;
}

constexpr jsize kEntries = 4;

// Sets four entries of `results`, as the constructor of berxit.Prediction reads them: numbers, scores, names (the label, then
// the labels, and the labels of the spans), and start, end and score of each span.
bool store(JNIEnv* env, jobjectArray results, jsize place, const berxit_prediction& found) {
    const jdouble numbers[] = {found.value, static_cast<jdouble>(found.exit_layer),
                               found.certainty, found.latency_ms, static_cast<jdouble>(found.truncated),
                               static_cast<jdouble>(found.stopped_by), static_cast<jdouble>(found.late)};
    const jsize count = static_cast<jsize>(std::size(numbers)), score_count = static_cast<jsize>(found.score_count);
    jdoubleArray first = env->NewDoubleArray(count);
    jfloatArray second = first ? env->NewFloatArray(score_count) : nullptr;
    std::vector<const char*> names{found.label};
    names.insert(names.end(), found.labels, found.labels + found.label_count);
    std::vector<jdouble> spans;
    for (size_t i = 0; i < found.span_count; ++i) {
        const berxit_span& span = found.spans[i];
        names.push_back(span.label);
        spans.insert(spans.end(), {static_cast<jdouble>(span.start), static_cast<jdouble>(span.end), span.score});
    }
    jclass of_bytes = env->FindClass("[B");
    jobjectArray third = second && of_bytes ? env->NewObjectArray(static_cast<jsize>(names.size()), of_bytes, nullptr) : nullptr;
    jdoubleArray fourth = third ? env->NewDoubleArray(static_cast<jsize>(spans.size())) : nullptr;
    if (!fourth) return false;
    env->SetDoubleArrayRegion(first, 0, count, numbers);
    env->SetFloatArrayRegion(second, 0, score_count, found.scores);
    for (size_t i = 0; i < names.size(); ++i) {
        jbyteArray name = names[i] ? array_of(env, names[i]) : nullptr;
        if (names[i] && !name) return false;
        env->SetObjectArrayElement(third, static_cast<jsize>(i), name);
        env->DeleteLocalRef(name);
    }
    env->SetDoubleArrayRegion(fourth, 0, static_cast<jsize>(spans.size()), spans.data());
    jsize entry = place * kEntries;
    const jobject entries[kEntries] = {first, second, third, fourth};
    for (jobject each : entries) {
        env->SetObjectArrayElement(results, entry++, each);
        env->DeleteLocalRef(each);
    }
    env->DeleteLocalRef(of_bytes);
    return true;
}

berxit_runner* runner_of(jlong handle) { return reinterpret_cast<berxit_runner*>(handle); }
berxit_stream* stream_of(jlong handle) { return reinterpret_cast<berxit_stream*>(handle); }

}  // namespace

extern "C" {

JNIEXPORT jlong JNICALL Java_berxit_EarlyExitRunner_open(
    JNIEnv* env, jclass, jbyteArray bundle, jbyteArray library, jint threads, jboolean pool, jboolean spinning, jboolean verify,
    jdouble miss_probability) {
    const Bytes path(env, bundle), onnxruntime(env, library);
    berxit_options options;
    berxit_options_init(&options);
    options.onnxruntime = onnxruntime.or_null();
    options.threads = threads;
    options.pool = pool;
    options.spinning = spinning;
    options.verify = verify;
    options.miss_probability = miss_probability;
    berxit_runner* runner = nullptr;
    failed(env, berxit_load(path.or_null(), &options, &runner));
    return reinterpret_cast<jlong>(runner);
}

JNIEXPORT void JNICALL Java_berxit_EarlyExitRunner_free(JNIEnv*, jclass, jlong runner) { berxit_free(runner_of(runner)); }

JNIEXPORT jobjectArray JNICALL Java_berxit_EarlyExitRunner_labels(JNIEnv* env, jclass, jlong runner) {
    const auto count = static_cast<jsize>(berxit_info_of(runner_of(runner)).label_count);
    jobjectArray labels = env->NewObjectArray(count, env->FindClass("[B"), nullptr);
    for (jsize i = 0; labels && i < count; ++i) {
        jbyteArray label = array_of(env, berxit_label(runner_of(runner), static_cast<size_t>(i)));
        env->SetObjectArrayElement(labels, i, label);
        env->DeleteLocalRef(label);
    }
    return labels;
}

JNIEXPORT jobjectArray JNICALL Java_berxit_EarlyExitRunner_predict(
    JNIEnv* env, jclass, jlong runner, jobjectArray texts, jdouble threshold, jdouble deadline_ms) {
    const jsize count = env->GetArrayLength(texts) / 2;
    std::vector<Bytes> bytes;
    bytes.reserve(static_cast<size_t>(2 * count));
    for (jsize i = 0; i < 2 * count; ++i) {
        auto text = static_cast<jbyteArray>(env->GetObjectArrayElement(texts, i));
        bytes.emplace_back(env, text);
        env->DeleteLocalRef(text);
    }
    std::vector<berxit_text> inputs;
    for (size_t i = 0; i < bytes.size(); i += 2)
        inputs.push_back({bytes[i].or_null(), bytes[i + 1].or_null(), bytes[i].text.size(), bytes[i + 1].text.size()});
    const berxit_call call = {threshold, deadline_ms};
    const berxit_text none = {"", nullptr, 0, 0};
    berxit_result* result = nullptr;
    if (failed(env, berxit_predict(runner_of(runner), inputs.empty() ? &none : inputs.data(), inputs.size(), &call, &result)))
        return nullptr;
    const std::unique_ptr<berxit_result, void (*)(berxit_result*)> owned(result, berxit_result_free);
    jobjectArray results = env->NewObjectArray(kEntries * count, env->FindClass("java/lang/Object"), nullptr);
    for (jsize i = 0; results && i < count; ++i)
        if (!store(env, results, i, *berxit_result_at(result, static_cast<size_t>(i)))) return nullptr;
    return results;
}

JNIEXPORT jlong JNICALL Java_berxit_EarlyExitRunner_openStream(
    JNIEnv* env, jclass, jlong runner, jbyteArray text, jbyteArray pair) {
    const Bytes first(env, text), second(env, pair);
    const berxit_text input = {first.or_null(), second.or_null(), first.text.size(), second.text.size()};
    berxit_stream* stream = nullptr;
    failed(env, berxit_stream_open(runner_of(runner), &input, &stream));
    return reinterpret_cast<jlong>(stream);
}

JNIEXPORT jobjectArray JNICALL Java_berxit_EarlyExitRunner_nextOf(JNIEnv* env, jclass, jlong stream) {
    const berxit_prediction* found = nullptr;
    if (failed(env, berxit_stream_next(stream_of(stream), &found)) || !found) return nullptr;
    jobjectArray results = env->NewObjectArray(kEntries, env->FindClass("java/lang/Object"), nullptr);
    return results && store(env, results, 0, *found) ? results : nullptr;
}

JNIEXPORT void JNICALL Java_berxit_EarlyExitRunner_freeStream(JNIEnv*, jclass, jlong stream) {
    berxit_stream_free(stream_of(stream));
}

JNIEXPORT jdouble JNICALL Java_berxit_EarlyExitRunner_check(JNIEnv* env, jclass, jlong runner) {
    double largest = 0;
    failed(env, berxit_check(runner_of(runner), &largest));
    return largest;
}

}  // extern "C"
