#if canImport(CoreML)
import CoreML
import Foundation

/// Compute units that CoreML chose for the operations of one segment.
public struct SegmentPlan: Equatable, Sendable {
    public enum Device: String, CaseIterable, Sendable {
        case cpu = "CPU"
        case gpu = "GPU"
        case neuralEngine = "Neural Engine"
    }

    /// File and function of the segment.
    public let segment: String
    /// Number of operations on each device, without constants, which run nowhere.
    public let operations: [Device: Int]
    /// Share of CoreML's estimated cost on each device, 0 to 1.
    public let cost: [Device: Double]
    /// Names of the operations on the CPU, in order: what keeps the segment off the Neural Engine.
    public let operationsOnCPU: [String]
}

@available(iOS 17.4, macCatalyst 17.4, macOS 14.4, tvOS 17.4, visionOS 1.1, *)
extension EarlyExitRunner {
    /// Compute units of every operation of a bundle, per segment. For development: it compiles the packages that the
    /// bundle does not contain compiled.
    public static func computePlan(
        of folder: URL, computeUnits: MLComputeUnits = CoreMLExecutor.defaultComputeUnits
    ) async throws -> [SegmentPlan] {
        let bundle = try ModelBundle(at: folder)
        let source = try CoreMLSource(
            bundle: bundle, options: LoadOptions(computeUnits: computeUnits), cache: CompiledModels.ofThisSystem())
        return try await computePlan(source)
    }

    /// For functions per length, of the shortest length.
    static func computePlan(_ source: CoreMLSource) async throws -> [SegmentPlan] {
        let manifest = source.bundle.manifest
        let length = manifest.lengths.min() ?? manifest.model.maxLength
        var plans: [SegmentPlan] = []
        for segment in manifest.segments {
            let configuration = try source.configuration(segment, length: length, units: source.options.computeUnits)
            let plan = try await MLComputePlan.load(
                contentsOf: source.compiledURL(segment), configuration: configuration)
            let function = segment.function(for: length, of: manifest.lengths) ?? "main"
            plans.append(SegmentPlan(source.name(segment, length: length), function, plan))
        }
        return plans
    }
}

@available(iOS 17.4, macCatalyst 17.4, macOS 14.4, tvOS 17.4, visionOS 1.1, *)
extension SegmentPlan {
    init(_ segment: String, _ name: String, _ plan: MLComputePlan) {
        var operations: [Device: Int] = [:]
        var cost: [Device: Double] = [:]
        var onCPU: [String] = []
        if case .program(let program) = plan.modelStructure,
            let function = program.functions[name]
        {
            for operation in function.block.operations {
                guard let preferred = plan.deviceUsage(for: operation)?.preferred, let device = Device(preferred) else {
                    continue
                }
                operations[device, default: 0] += 1
                cost[device, default: 0] += plan.estimatedCost(of: operation)?.weight ?? 0
                if device == .cpu { onCPU.append(operation.operatorName) }
            }
        }
        let total = cost.values.reduce(0, +)
        self.segment = segment
        self.operations = operations
        self.cost = total > 0 ? cost.mapValues { $0 / total } : [:]
        operationsOnCPU = onCPU
    }
}

@available(iOS 17, macCatalyst 17, macOS 14, tvOS 17, visionOS 1, *)
extension SegmentPlan.Device {
    fileprivate init?(_ device: MLComputeDevice) {
        switch device {
        case .cpu: self = .cpu
        case .gpu: self = .gpu
        case .neuralEngine: self = .neuralEngine
        @unknown default: return nil
        }
    }
}
#endif
