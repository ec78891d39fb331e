import Foundation

/// Stand-in for the CoreML API that the package uses, declared as Apple documents it. Its models add numbers. It tests
/// `CoreMLExecutor`, not Apple's framework.
public class MLModel {
    /// Log of all calls of models, in order.
    public static let log = Log()

    private let name: String
    private let busy = NSLock()

    private init(name: String) {
        self.name = name
    }

    public class func compileModel(at package: URL) async throws -> URL {
        log.add("compile \(package.lastPathComponent)")
        let place = FileManager.default.temporaryDirectory.appendingPathComponent("\(UUID().uuidString).mlmodelc")
        try FileManager.default.copyItem(at: package, to: place)
        return place
    }

    public class func load(
        contentsOf compiled: URL, configuration: MLModelConfiguration = MLModelConfiguration()
    ) async throws -> MLModel {
        let file = try String(contentsOf: compiled.appendingPathComponent("model"), encoding: .utf8)
        log.add("load on \(configuration.computeUnits)")
        return MLModel(name: configuration.functionName ?? file.trimmingCharacters(in: .newlines))
    }

    /// Runs "layer N" of a file, or the function layer_NN: adds N to hidden; the logits are the hidden input, N, and 0.
    public func prediction(from input: any MLFeatureProvider) throws -> any MLFeatureProvider {
        guard busy.try() else { throw Misuse("two predictions at once on \(name)") }
        defer { busy.unlock() }
        usleep(200)
        let fed = try input.featureNames.sorted().map { ($0, try Self.array($0, input)) }
        MLModel.log.add("\(name) \(fed.map { "\($0) \($1.shape)" }.joined(separator: ", "))")
        guard let layer = Float(name.filter(\.isNumber)), layer > 0 else {
            guard fed.map(\.0) == ["attention_mask", "input_ids", "token_type_ids"],
                fed.allSatisfy({ $1.dataType == .int32 })
            else { throw Misuse("fed \(fed.map(\.0))") }
            let ids = fed[1].1
            let sum = (0..<ids.count).reduce(Float(0)) { $0 + ids[$1].floatValue }
            return try Self.features(["hidden_out": [sum], "attention_bias": [7]])
        }
        guard fed.map(\.0) == ["attention_bias", "hidden_in"], fed[0].1[0] == 7 else { throw Misuse("fed \(fed.map(\.0))") }
        let hidden = fed[1].1[0].floatValue
        return try Self.features(["hidden_out": [hidden + layer], "logits": [hidden, layer, 0], "lte": [layer / 10]])
    }

    private static func array(_ name: String, _ input: any MLFeatureProvider) throws -> MLMultiArray {
        guard let array = input.featureValue(for: name)?.multiArrayValue else { throw Misuse("\(name) is no tensor") }
        return array
    }

    private static func features(_ values: [String: [Float]]) throws -> any MLFeatureProvider {
        try MLDictionaryFeatureProvider(
            dictionary: values.mapValues {
                MLFeatureValue(multiArray: MLMultiArray(MLShapedArray(scalars: $0, shape: [1, $0.count])))
            })
    }
}

public struct Misuse: Error {
    let what: String

    init(_ what: String) {
        self.what = what
    }
}

public final class Log: @unchecked Sendable {
    private let lock = NSLock()
    private var lines: [String] = []

    func add(_ line: String) {
        lock.lock()
        defer { lock.unlock() }
        lines.append(line)
    }

    /// Lines since the previous call.
    public func take() -> [String] {
        lock.lock()
        defer { lock.unlock() }
        defer { lines = [] }
        return lines
    }
}

public enum MLComputeUnits: Int, Sendable {
    case cpuOnly, cpuAndGPU, all, cpuAndNeuralEngine
}

public class MLModelConfiguration {
    public var computeUnits = MLComputeUnits.all
    public var functionName: String?

    public init() {}
}

public protocol MLFeatureProvider {
    var featureNames: Set<String> { get }
    func featureValue(for featureName: String) -> MLFeatureValue?
}

public class MLDictionaryFeatureProvider: MLFeatureProvider {
    private let values: [String: MLFeatureValue]

    public init(dictionary: [String: Any]) throws {
        guard let values = dictionary as? [String: MLFeatureValue] else { throw Misuse("no features") }
        self.values = values
    }

    public var featureNames: Set<String> { Set(values.keys) }

    public func featureValue(for featureName: String) -> MLFeatureValue? { values[featureName] }
}

public class MLFeatureValue {
    public let multiArrayValue: MLMultiArray?

    public init(multiArray: MLMultiArray) {
        multiArrayValue = multiArray
    }
}

public enum MLMultiArrayDataType: Int {
    case float16, float32, int32
}

public class MLMultiArray {
    public let shape: [NSNumber]
    public let dataType: MLMultiArrayDataType
    public let dataPointer: UnsafeMutableRawPointer
    public var count: Int { shape.reduce(1) { $0 * $1.intValue } }

    public init(shape: [NSNumber], dataType: MLMultiArrayDataType) throws {
        self.shape = shape
        self.dataType = dataType
        dataPointer = .allocate(byteCount: 4 * max(shape.reduce(1) { $0 * $1.intValue }, 1), alignment: 4)
    }

    public convenience init<Shaped: MLShapedArrayProtocol>(_ shaped: Shaped) {
        try! self.init(
            shape: shaped.shape.map { NSNumber(value: $0) }, dataType: Shaped.Scalar.self == Int32.self ? .int32 : .float32)
        shaped.scalars.withUnsafeBytes { dataPointer.copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
    }

    deinit { dataPointer.deallocate() }

    public subscript(place: Int) -> NSNumber {
        dataType == .int32
            ? NSNumber(value: dataPointer.assumingMemoryBound(to: Int32.self)[place])
            : NSNumber(value: dataPointer.assumingMemoryBound(to: Float.self)[place])
    }
}

public protocol MLShapedArrayScalar {}
extension Int32: MLShapedArrayScalar {}
extension Float: MLShapedArrayScalar {}

public protocol MLShapedArrayProtocol {
    associatedtype Scalar: MLShapedArrayScalar
    var shape: [Int] { get }
    var scalars: [Scalar] { get }
}

public struct MLShapedArray<Scalar: MLShapedArrayScalar>: MLShapedArrayProtocol {
    public let shape: [Int]
    public let scalars: [Scalar]

    public init<Values: Sequence>(scalars: Values, shape: [Int]) where Values.Element == Scalar {
        self.shape = shape
        self.scalars = Array(scalars)
    }
}
