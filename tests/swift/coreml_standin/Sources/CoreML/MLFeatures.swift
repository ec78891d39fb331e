import Foundation

@available(iOS 11, macCatalyst 13.1, macOS 10.13, tvOS 11, visionOS 1, *)
public protocol MLFeatureProvider {
    var featureNames: Set<String> { get }
    func featureValue(for featureName: String) -> MLFeatureValue?
}

@available(iOS 11, macCatalyst 13.1, macOS 10.13, tvOS 11, visionOS 1, *)
public class MLDictionaryFeatureProvider: MLFeatureProvider {
    private let values: [String: MLFeatureValue]

    public init(dictionary: [String: Any]) throws {
        guard let values = dictionary as? [String: MLFeatureValue] else { throw StandinError("no features") }
        self.values = values
    }

    public var featureNames: Set<String> { Set(values.keys) }

    public func featureValue(for featureName: String) -> MLFeatureValue? { values[featureName] }
}

@available(iOS 11, macCatalyst 13.1, macOS 10.13, tvOS 11, visionOS 1, *)
public class MLFeatureValue {
    public let multiArrayValue: MLMultiArray?

    public init(multiArray value: MLMultiArray) {
        multiArrayValue = value
    }
}

@available(iOS 11, macCatalyst 13.1, macOS 10.13, tvOS 11, visionOS 1, *)
public enum MLMultiArrayDataType: Int, Sendable {
    case double, float32, int32
    @available(iOS 16, macCatalyst 16, macOS 12, tvOS 16, visionOS 1, *)
    case float16
}

@available(iOS 11, macCatalyst 13.1, macOS 10.13, tvOS 11, visionOS 1, *)
public class MLMultiArray {
    public let shape: [NSNumber]
    public let strides: [NSNumber]
    public let dataType: MLMultiArrayDataType
    public let dataPointer: UnsafeMutableRawPointer
    public var count: Int { shape.reduce(1) { $0 * $1.intValue } }

    /// Contiguous array. Its content is undefined, here 0xFF bytes: NaN in floating point.
    public convenience init(shape: [NSNumber], dataType: MLMultiArrayDataType) throws {
        self.init(shape: shape, dataType: dataType, gap: 1)
    }

    /// `gap`: distance between two elements of the last axis.
    init(shape: [NSNumber], dataType: MLMultiArrayDataType, gap: Int) {
        self.shape = shape
        self.dataType = dataType
        strides = shape.indices.map { axis in
            NSNumber(value: shape[(axis + 1)...].reduce(gap) { $0 * $1.intValue })
        }
        let bytes = 8 * max(shape.reduce(gap) { $0 * $1.intValue }, 1)
        dataPointer = .allocate(byteCount: bytes, alignment: 8)
        dataPointer.initializeMemory(as: UInt8.self, repeating: 0xFF, count: bytes)
    }

    deinit { dataPointer.deallocate() }

    /// Element at an offset in memory: the worst case, because Apple does not document whether it respects strides.
    public subscript(idx: Int) -> NSNumber {
        get {
            switch dataType {
            case .double: return NSNumber(value: dataPointer.assumingMemoryBound(to: Double.self)[idx])
            case .float32: return NSNumber(value: dataPointer.assumingMemoryBound(to: Float.self)[idx])
            case .int32: return NSNumber(value: dataPointer.assumingMemoryBound(to: Int32.self)[idx])
            case .float16: return NSNumber(value: Float(dataPointer.assumingMemoryBound(to: Float16.self)[idx]))
            }
        }
        set {
            switch dataType {
            case .double: dataPointer.assumingMemoryBound(to: Double.self)[idx] = newValue.doubleValue
            case .float32: dataPointer.assumingMemoryBound(to: Float.self)[idx] = newValue.floatValue
            case .int32: dataPointer.assumingMemoryBound(to: Int32.self)[idx] = newValue.int32Value
            case .float16: dataPointer.assumingMemoryBound(to: Float16.self)[idx] = Float16(newValue.floatValue)
            }
        }
    }

    /// Element at a multidimensional index.
    public subscript(key: [NSNumber]) -> NSNumber {
        get { self[offset(key)] }
        set { self[offset(key)] = newValue }
    }

    private func offset(_ key: [NSNumber]) -> Int {
        precondition(key.count == shape.count)
        return zip(key, strides).reduce(0) { $0 + $1.0.intValue * $1.1.intValue }
    }

    /// Output (1, n) of a model.
    static func output(_ values: [Float]) throws -> MLMultiArray {
        let strided = Simulation.shared.areOutputsStrided
        let array = MLMultiArray(
            shape: [1, NSNumber(value: values.count)], dataType: strided ? .float16 : .float32, gap: strided ? 32 : 1)
        for (place, value) in values.enumerated() { array[[0, NSNumber(value: place)]] = NSNumber(value: value) }
        return array
    }
}
