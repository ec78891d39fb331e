import Foundation
import ObjectiveC

// Stand-in for the part of CoreML that the package uses: names, signatures and availability are those that Apple
// publishes. Its models add numbers. It tests the package, not Apple's framework.

@available(iOS 11, macCatalyst 13.1, macOS 10.13, tvOS 11, visionOS 1, *)
public class MLModel {
    private let name: String
    private let busy = NSLock()

    private init(name: String) {
        self.name = name
    }

    /// Copies the package to a temporary folder, as CoreML writes its compiled model there.
    @available(iOS 16, macCatalyst 16, macOS 13, tvOS 16, visionOS 1, *)
    @available(watchOS, unavailable)
    public class func compileModel(at modelURL: URL) async throws -> URL {
        Simulation.shared.log("compile \(modelURL.lastPathComponent)")
        let place = FileManager.default.temporaryDirectory.appendingPathComponent("\(UUID().uuidString).mlmodelc")
        try FileManager.default.copyItem(at: modelURL, to: place)
        return place
    }

    @available(iOS 15, macCatalyst 15, macOS 12, tvOS 15, visionOS 1, *)
    public class func load(
        contentsOf url: URL, configuration: MLModelConfiguration = MLModelConfiguration()
    ) async throws -> MLModel {
        Simulation.shared.log("load on \(configuration.computeUnits)")
        let name = configuration.functionName
        try await Simulation.shared.waitToLoad(on: configuration.computeUnits)
        if let error = Simulation.shared.nextLoadError() { throw error }
        guard let file = try? String(contentsOf: url.appendingPathComponent("model"), encoding: .utf8),
            file.hasPrefix("layer ")
        else { throw StandinError("Unable to load model: \(url.path)") }
        return MLModel(name: name ?? file.trimmingCharacters(in: .newlines))
    }

    /// Runs "layer N" of a file, or the function layer_NN: adds N to hidden; the logits are the hidden input, N, and 0.
    /// The function "full" has the logits of layer 6, for the hidden state that the layers 2 and 3 leave.
    /// Its output is autoreleased. One thread at a time.
    @available(iOS 11, macCatalyst 13.1, macOS 10.13, tvOS 11, visionOS 1, *)
    public func prediction(from input: any MLFeatureProvider) throws -> any MLFeatureProvider {
        guard busy.try() else { throw StandinError("two predictions at once on \(name)") }
        defer { busy.unlock() }
        usleep(200)
        let output = try run(input, log: "\(name)")
        autorelease(output)
        return output
    }

    /// As the synchronous prediction, but thread-safe.
    @available(iOS 17, macCatalyst 17, macOS 14, tvOS 17, visionOS 1, *)
    public func prediction(from input: any MLFeatureProvider) async throws -> any MLFeatureProvider {
        try await Task.sleep(nanoseconds: 200_000)
        return try run(input, log: "async \(name)")
    }

    private func run(_ input: any MLFeatureProvider, log: String) throws -> Output {
        let fed = try input.featureNames.sorted().map { ($0, try MLModel.array($0, input)) }
        Simulation.shared.log("\(log) \(fed.map { "\($0) \($1.shape)" }.joined(separator: ", "))")
        guard let layer = Float(name.replacing("_s8", with: "").replacing("_s16", with: "").filter(\.isNumber)),
            layer > 0
        else {
            guard fed.map(\.0) == ["attention_mask", "input_ids", "token_type_ids"],
                fed.allSatisfy({ $1.dataType == .int32 })
            else { throw StandinError("fed \(fed.map(\.0))") }
            let ids = fed[1].1
            let sum = (0..<ids.count).reduce(Float(0)) { $0 + ids[[0, NSNumber(value: $1)]].floatValue }
            if name == "full" { return try Output(["logits": [sum + 5, 6, 0], "lte": [0.6]]) }
            return try Output(["hidden_out": [sum], "attention_bias": [7]])
        }
        guard fed.map(\.0) == ["attention_bias", "hidden_in"], fed[0].1[[0, 0]] == 7 else {
            throw StandinError("fed \(fed.map(\.0))")
        }
        let hidden = fed[1].1[[0, 0]].floatValue
        return try Output(["hidden_out": [hidden + layer], "logits": [hidden, layer, 0], "lte": [layer / 10]])
    }

    private static func array(_ name: String, _ input: any MLFeatureProvider) throws -> MLMultiArray {
        guard let array = input.featureValue(for: name)?.multiArrayValue else {
            throw StandinError("\(name) is no tensor")
        }
        return array
    }
}

/// Output of a prediction, counted while it is alive.
private final class Output: MLFeatureProvider {
    private let values: [String: MLFeatureValue]

    init(_ values: [String: [Float]]) throws {
        self.values = try values.mapValues { MLFeatureValue(multiArray: try MLMultiArray.output($0)) }
        Simulation.shared.liveOutputs.increase()
    }

    deinit { Simulation.shared.liveOutputs.increase(by: -1) }

    var featureNames: Set<String> { Set(values.keys) }

    func featureValue(for featureName: String) -> MLFeatureValue? { values[featureName] }
}

@available(iOS 12, macCatalyst 13.1, macOS 10.14, tvOS 12, visionOS 1, *)
public class MLModelConfiguration {
    @available(iOS 12, macCatalyst 13.1, macOS 10.14, tvOS 12, visionOS 1, *)
    public var computeUnits = MLComputeUnits.all
    @available(iOS 16, macCatalyst 16, macOS 13, tvOS 16, visionOS 1, *)
    public var modelDisplayName: String?
    @available(iOS 18, macCatalyst 18, macOS 15, tvOS 18, visionOS 2, *)
    public var functionName: String?

    public init() {}
}

@available(iOS 12, macCatalyst 13.1, macOS 10.14, tvOS 12, visionOS 1, *)
public enum MLComputeUnits: Int, Sendable {
    case cpuOnly, cpuAndGPU, all
    @available(iOS 16, macCatalyst 16, macOS 13, tvOS 16, visionOS 1, *)
    case cpuAndNeuralEngine
}
