#if canImport(CoreML)
import CoreML
import Foundation

/// Runs the .mlpackage segments of a bundle with CoreML: one MLModel per function, each used by one thread at a time.
public final class CoreMLExecutor: SegmentExecutor, @unchecked Sendable {
    /// Layer -> the segment that ends with it; 0 is the embeddings segment.
    private let steps: [Int: CoreMLStep]
    private let lengths: [Int]
    private let padTokenId: Int32

    /// Default compute units: CPU and Neural Engine on iPhone and iPad, all compute units on a Mac. They equal those of
    /// the device catalogue of `berxit-export`.
    public static var defaultComputeUnits: MLComputeUnits {
        #if os(iOS) && !targetEnvironment(macCatalyst)
        return .cpuAndNeuralEngine
        #else
        return .all
        #endif
    }

    /// Loads every segment. Compiles segments that are not in the cache.
    public convenience init(
        bundle: ModelBundle, computeUnits: MLComputeUnits = CoreMLExecutor.defaultComputeUnits
    ) async throws {
        try await self.init(bundle: bundle, computeUnits: computeUnits, cache: CompiledModels.ofThisSystem())
    }

    init(bundle: ModelBundle, computeUnits: MLComputeUnits, cache: CompiledModels) async throws {
        guard bundle.manifest.target == "coreml" else {
            throw EarlyExitError.failure(
                "\(bundle.folder.path) was exported for '\(bundle.manifest.target)', but this package runs coreml:"
                    + " export it with berxit-export --target coreml")
        }
        var loaded: [String: CoreMLModel] = [:]
        var steps: [Int: CoreMLStep] = [:]
        for segment in bundle.manifest.segments {
            let key = "\(segment.file)#\(segment.function ?? "")"
            if loaded[key] == nil {
                loaded[key] = try await CoreMLModel.load(segment, from: bundle, cache: cache, computeUnits: computeUnits)
            }
            if let model = loaded[key] {
                steps[segment.layer] = try CoreMLStep(segment, model: model, bundle: bundle)
            }
        }
        cache.removeStale()
        self.steps = steps
        lengths = bundle.manifest.lengths
        padTokenId = Int32(clamping: bundle.manifest.model.padTokenId)
    }

    public func embed(_ tokens: Tokens) throws -> any LayerRunner {
        let padded = try tokens.padded(toOneOf: lengths, padTokenId: padTokenId)
        let run = CoreMLRun(
            steps: steps,
            tensors: [
                "input_ids": CoreMLExecutor.row(padded.inputIds),
                "token_type_ids": CoreMLExecutor.row(padded.tokenTypeIds),
                "attention_mask": CoreMLExecutor.row(padded.attentionMask),
            ])
        try run.embeddings()
        return run
    }

    /// Array (1, S), int32.
    private static func row(_ values: [Int32]) -> MLFeatureValue {
        MLFeatureValue(multiArray: MLMultiArray(MLShapedArray<Int32>(scalars: values, shape: [1, values.count])))
    }
}

/// State of one input between two segments. The outputs of CoreML are passed on unchanged, in any layout.
private final class CoreMLRun: LayerRunner {
    private let steps: [Int: CoreMLStep]
    /// Role -> tensor for the next segment: the hidden states, and the outputs of the embeddings for all layers.
    private var tensors: [String: MLFeatureValue]

    init(steps: [Int: CoreMLStep], tensors: [String: MLFeatureValue]) {
        self.steps = steps
        self.tensors = tensors
    }

    func embeddings() throws {
        tensors = try step(0).run(tensors)
    }

    func layer(_ layer: Int) throws -> LayerOutput {
        let made = try step(layer).run(tensors)
        tensors["hidden"] = made["hidden"]
        guard let logits = made["logits"]?.multiArrayValue else {
            throw EarlyExitError.failure("layer \(layer) gave no logits. Export the bundle again")
        }
        return LayerOutput(logits: floats(logits), lte: made["lte"]?.multiArrayValue.map(floats)?.first)
    }

    private func step(_ layer: Int) throws -> CoreMLStep {
        guard let step = steps[layer] else {
            throw EarlyExitError.failure("no segment ends with layer \(layer). Export the bundle again")
        }
        return step
    }

    private func floats(_ array: MLMultiArray) -> [Float] {
        (0..<array.count).map { array[$0].floatValue }
    }
}

/// A segment with its mapping of roles (hidden, logits, ...) to the tensor names of its file.
private struct CoreMLStep {
    private let model: CoreMLModel
    private let inputs: [(role: String, name: String)]
    private let outputs: [(role: String, name: String)]
    private let constants: [String: MLFeatureValue]

    init(_ segment: Segment, model: CoreMLModel, bundle: ModelBundle) throws {
        self.model = model
        inputs = segment.inputs.filter { segment.constants[$0.name] == nil }.map { ($0.role, $0.name) }
        outputs = segment.outputs.map { ($0.role, $0.name) }
        constants = try segment.constants.mapValues { MLFeatureValue(multiArray: try $0.read(from: bundle)) }
    }

    /// Runs the segment: input tensors by role -> output tensors by role.
    func run(_ tensors: [String: MLFeatureValue]) throws -> [String: MLFeatureValue] {
        var named = constants
        for (role, name) in inputs {
            guard let tensor = tensors[role] else {
                throw EarlyExitError.failure("no segment makes '\(role)' for \(model.name). Export the bundle again")
            }
            named[name] = tensor
        }
        let made = try model.predict(MLDictionaryFeatureProvider(dictionary: named))
        var found: [String: MLFeatureValue] = [:]
        for (role, name) in outputs {
            guard let value = made.featureValue(for: name) else {
                throw EarlyExitError.failure("\(model.name) gave no output '\(name)'. Export the bundle again")
            }
            found[role] = value
        }
        return found
    }
}

/// An MLModel with a lock, because a model must be used by one thread at a time.
private final class CoreMLModel: @unchecked Sendable {
    let name: String
    private let model: MLModel
    private let lock = NSLock()

    private init(name: String, model: MLModel) {
        self.name = name
        self.model = model
    }

    static func load(
        _ segment: Segment, from bundle: ModelBundle, cache: CompiledModels, computeUnits: MLComputeUnits
    ) async throws -> CoreMLModel {
        let name = [segment.file, segment.function].compactMap { $0 }.joined(separator: " ")
        let configuration = MLModelConfiguration()
        configuration.computeUnits = computeUnits
        if let function = segment.function {
            guard #available(iOS 18, macOS 15, tvOS 18, watchOS 11, *) else {
                throw EarlyExitError.failure(
                    "\(name): files with several functions need iOS 18 or macOS 15. For iOS 16, see docs/coreml.md")
            }
            configuration.functionName = function
        }
        do {
            let compiled = try await cache.url(sum: segment.sha256) {
                try await MLModel.compileModel(at: bundle.url(of: segment.file))
            }
            return CoreMLModel(name: name, model: try await MLModel.load(contentsOf: compiled, configuration: configuration))
        } catch {
            throw EarlyExitError.failure(
                "CoreML cannot load \(name): \(error.localizedDescription). Copy the bundle again, or export it again")
        }
    }

    func predict(_ features: any MLFeatureProvider) throws -> any MLFeatureProvider {
        lock.lock()
        defer { lock.unlock() }
        do {
            return try model.prediction(from: features)
        } catch {
            throw EarlyExitError.failure(
                "CoreML cannot run \(name): \(error.localizedDescription). Try other compute units")
        }
    }
}

extension TensorFile {
    fileprivate func read(from bundle: ModelBundle) throws -> MLMultiArray {
        let types: [String: (type: MLMultiArrayDataType, bytes: Int)] = [
            "float32": (.float32, 4), "float16": (.float16, 2), "int32": (.int32, 4),
        ]
        let data = try Data(contentsOf: bundle.url(of: file))
        guard let (type, bytes) = types[dtype], data.count == shape.reduce(bytes, *) else {
            throw EarlyExitError.failure("\(file): not a \(dtype) tensor of shape \(shape). Export the bundle again")
        }
        let array = try MLMultiArray(shape: shape.map { NSNumber(value: $0) }, dataType: type)
        data.withUnsafeBytes { source in
            if let base = source.baseAddress { array.dataPointer.copyMemory(from: base, byteCount: data.count) }
        }
        return array
    }
}

extension EarlyExitRunner {
    /// Opens a bundle that `berxit-export --target coreml` wrote.
    ///
    /// The first call compiles the models, which takes seconds; later calls load the compiled models from the caches
    /// folder. `verify`: compare every file with its sha256 first. `warmUp`: run every segment at every length, so that
    /// the first prediction is as fast as the others. `missProbability`: maximum share of calls that miss their
    /// deadline although their first exit was in time.
    public static func load(
        _ folder: URL, computeUnits: MLComputeUnits = CoreMLExecutor.defaultComputeUnits, verify: Bool = true,
        warmUp: Bool = true, missProbability: Double = 0.01
    ) async throws -> EarlyExitRunner {
        let bundle = try ModelBundle(at: folder, verify: verify)
        let runner = try EarlyExitRunner(
            bundle: bundle, executor: try await CoreMLExecutor(bundle: bundle, computeUnits: computeUnits),
            missProbability: missProbability)
        if warmUp { try runner.warmUp() }
        return runner
    }
}
#endif
