#if canImport(CoreML)
import CoreML
import Foundation

/// Runs a bundle's .mlpackage segments with CoreML: one MLModel for each function, each used by one thread at a time.
public final class CoreMLExecutor: SegmentExecutor, @unchecked Sendable {
    private let steps: [CoreMLStep]
    private let lengths: [Int]
    private let padTokenId: Int32

    /// Compiles what is not in the cache yet, and loads every layer.
    public init(bundle: ModelBundle, computeUnits: MLComputeUnits = .all) async throws {
        guard bundle.manifest.target == "coreml" else {
            throw EarlyExitError.failure(
                "\(bundle.folder.path) was exported for '\(bundle.manifest.target)', this package runs coreml:"
                    + " berxit-export --target coreml")
        }
        var loaded: [String: CoreMLModel] = [:]
        var steps: [CoreMLStep] = []
        for segment in bundle.manifest.segments {
            let key = "\(segment.file)#\(segment.function ?? "")"
            if loaded[key] == nil {
                loaded[key] = try await CoreMLModel.load(segment, from: bundle, computeUnits: computeUnits)
            }
            if let model = loaded[key] { steps.append(try CoreMLStep(segment, model: model, bundle: bundle)) }
        }
        self.steps = steps
        lengths = bundle.manifest.lengths
        padTokenId = Int32(clamping: bundle.manifest.model.padTokenId)
    }

    public func embed(_ tokens: Tokens) throws -> any LayerRunner {
        let padded = try tokens.padded(toOneOf: lengths, padTokenId: padTokenId)
        let made = try steps[0].run([
            "input_ids": CoreMLExecutor.row(padded.inputIds),
            "token_type_ids": CoreMLExecutor.row(padded.tokenTypeIds),
            "attention_mask": CoreMLExecutor.row(padded.attentionMask),
        ])
        return CoreMLRun(steps: steps, tensors: made)
    }

    /// (1, S) int32.
    private static func row(_ values: [Int32]) -> MLFeatureValue {
        MLFeatureValue(multiArray: MLMultiArray(MLShapedArray<Int32>(scalars: values, shape: [1, values.count])))
    }
}

/// One input between two segments: what CoreML gave is passed on as it is, whatever its layout.
private final class CoreMLRun: LayerRunner {
    private let steps: [CoreMLStep]
    /// Role -> what the next layer reads: hidden, and what the embeddings made for all layers.
    private var tensors: [String: MLFeatureValue]

    init(steps: [CoreMLStep], tensors: [String: MLFeatureValue]) {
        self.steps = steps
        self.tensors = tensors
    }

    func layer(_ layer: Int) throws -> LayerOutput {
        let made = try steps[layer].run(tensors)
        tensors["hidden"] = made["hidden"]
        guard let logits = made["logits"]?.multiArrayValue else {
            throw EarlyExitError.failure("layer \(layer) gave no logits. Export the bundle again")
        }
        return LayerOutput(logits: floats(logits), lte: made["lte"]?.multiArrayValue.map(floats)?.first)
    }

    private func floats(_ array: MLMultiArray) -> [Float] {
        (0..<array.count).map { array[$0].floatValue }
    }
}

/// A segment: roles (hidden, logits, ...) tied to the names in its file.
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

    /// Role -> tensor, in and out.
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

/// An MLModel and its lock: CoreML wants a model used by one thread at a time.
private final class CoreMLModel: @unchecked Sendable {
    let name: String
    private let model: MLModel
    private let lock = NSLock()

    private init(name: String, model: MLModel) {
        self.name = name
        self.model = model
    }

    static func load(
        _ segment: Segment, from bundle: ModelBundle, computeUnits: MLComputeUnits
    ) async throws -> CoreMLModel {
        let name = [segment.file, segment.function].compactMap { $0 }.joined(separator: " ")
        let configuration = MLModelConfiguration()
        configuration.computeUnits = computeUnits
        if let function = segment.function {
            guard #available(iOS 18, macOS 15, tvOS 18, watchOS 11, *) else {
                throw EarlyExitError.failure(
                    "\(name): files with several functions need iOS 18 or macOS 15. Export for iOS 16: docs/coreml.md")
            }
            configuration.functionName = function
        }
        do {
            let compiled = try await CompiledModels.url(of: bundle.url(of: segment.file), sum: segment.sha256)
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

/// .mlmodelc folders, compiled on this device once and kept in the caches folder under the sum of their .mlpackage.
private enum CompiledModels {
    static func url(of package: URL, sum: String) async throws -> URL {
        let files = FileManager.default
        let system = ProcessInfo.processInfo.operatingSystemVersion
        let version = "\(system.majorVersion).\(system.minorVersion).\(system.patchVersion)"
        let folder = try files.url(for: .cachesDirectory, in: .userDomainMask, appropriateFor: nil, create: true)
            .appendingPathComponent("EarlyExit").appendingPathComponent(version)
        let kept = folder.appendingPathComponent(sum).appendingPathExtension("mlmodelc")
        if files.fileExists(atPath: kept.path) { return kept }
        try files.createDirectory(at: folder, withIntermediateDirectories: true)
        let compiled = try await MLModel.compileModel(at: package)
        do {
            try files.moveItem(at: compiled, to: kept)
            return kept
        } catch {
            return files.fileExists(atPath: kept.path) ? kept : compiled  // another runner was faster; or no room to keep it
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
    /// The first time, it compiles the models, which takes seconds; later the compiled ones load from the caches folder.
    /// `verify`: compare every file with its sha256 first.
    public static func load(
        _ folder: URL, computeUnits: MLComputeUnits = .all, verify: Bool = true
    ) async throws -> EarlyExitRunner {
        let bundle = try ModelBundle(at: folder, verify: verify)
        return try EarlyExitRunner(
            bundle: bundle, executor: try await CoreMLExecutor(bundle: bundle, computeUnits: computeUnits))
    }
}
#endif
