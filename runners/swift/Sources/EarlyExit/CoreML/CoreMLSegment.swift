#if canImport(CoreML)
import CoreML
import Foundation

/// A segment with its model and its mapping of roles (hidden, logits, ...) to the tensor names of its file.
///
/// It is never modified, and CoreML only reads the constant inputs, so that several tasks may use it.
final class CoreMLSegment: @unchecked Sendable {
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
    func run(_ tensors: [String: MLFeatureValue]) async throws -> [String: MLFeatureValue] {
        var named = constants
        for (role, name) in inputs {
            guard let tensor = tensors[role] else {
                throw EarlyExitError.failure("no segment makes '\(role)' for \(model.name). Export the bundle again")
            }
            named[name] = tensor
        }
        let made = try await model.predict(MLDictionaryFeatureProvider(dictionary: named))
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

extension MLMultiArray {
    /// Array (1, S), int32.
    static func row(_ values: [Int32]) throws -> MLMultiArray {
        let array = try MLMultiArray(shape: [1, NSNumber(value: values.count)], dataType: .int32)
        values.withUnsafeBytes { array.fill($0) }
        return array
    }

    /// Copies values of the array's type, row-major, to an array that was just created.
    fileprivate func fill(_ values: UnsafeRawBufferPointer) {
        guard let base = values.baseAddress else { return }
        dataPointer.copyMemory(from: base, byteCount: values.count)
    }

    /// Values in row-major order. CoreML's outputs may have gaps between the rows: only the subscript by a
    /// multidimensional index respects the strides for certain.
    var floats: [Float] {
        let sizes = shape.map(\.intValue)
        return (0..<count).map { place in
            var rest = place
            let index = sizes.reversed().map { size in
                defer { rest /= size }
                return NSNumber(value: rest % size)
            }
            return self[index.reversed()].floatValue
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
        data.withUnsafeBytes { array.fill($0) }
        return array
    }
}
#endif
