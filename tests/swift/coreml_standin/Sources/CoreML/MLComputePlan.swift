import Foundation

// Every model has one function, "main" or the one of the configuration, with these operations: a constant, which runs
// nowhere; two on the Neural Engine and one on the CPU, if the compute units include the former.

@available(iOS 17.4, macCatalyst 17.4, macOS 14.4, tvOS 17.4, visionOS 1, *)
public class MLComputePlan {
    public let modelStructure: MLModelStructure
    private let units: MLComputeUnits

    private init(_ modelStructure: MLModelStructure, _ units: MLComputeUnits) {
        self.modelStructure = modelStructure
        self.units = units
    }

    public static func load(contentsOf url: URL, configuration: MLModelConfiguration) async throws -> MLComputePlan {
        let names = ["const", "conv", "softmax", "gather"]
        let operations = names.map { MLModelStructure.Program.Operation(operatorName: $0) }
        let function = MLModelStructure.Program.Function(block: .init(operations: operations))
        let functions = [configuration.functionName ?? "main": function]
        return MLComputePlan(.program(.init(functions: functions)), configuration.computeUnits)
    }

    public func deviceUsage(for operation: MLModelStructure.Program.Operation) -> DeviceUsage? {
        guard operation.operatorName != "const" else { return nil }
        guard units == .all || units == .cpuAndNeuralEngine, operation.operatorName != "gather" else {
            return DeviceUsage(preferred: .cpu(MLCPUComputeDevice()))
        }
        return DeviceUsage(preferred: .neuralEngine(MLNeuralEngineComputeDevice()))
    }

    public func estimatedCost(of operation: MLModelStructure.Program.Operation) -> Cost? {
        operation.operatorName == "const" ? nil : Cost(weight: operation.operatorName == "conv" ? 0.6 : 0.2)
    }

    @available(iOS 17.4, macCatalyst 17.4, macOS 14.4, tvOS 17.4, visionOS 1, *)
    public struct DeviceUsage {
        public let preferred: MLComputeDevice
    }

    @available(iOS 17.4, macCatalyst 17.4, macOS 14.4, tvOS 17.4, visionOS 1, *)
    public struct Cost {
        public let weight: Double
    }
}

@available(iOS 17.4, macCatalyst 17.4, macOS 14.4, tvOS 17.4, visionOS 1, *)
public enum MLModelStructure {
    case program(Program)
    case unsupported

    @available(iOS 17.4, macCatalyst 17.4, macOS 14.4, tvOS 17.4, visionOS 1, *)
    public struct Program {
        public let functions: [String: Function]

        public struct Function {
            public let block: Block
        }

        public struct Block {
            public let operations: [Operation]
        }

        public struct Operation {
            public let operatorName: String
        }
    }
}

@available(iOS 17, macCatalyst 17, macOS 14, tvOS 17, visionOS 1, *)
public enum MLComputeDevice {
    case cpu(MLCPUComputeDevice)
    case gpu(MLGPUComputeDevice)
    case neuralEngine(MLNeuralEngineComputeDevice)
}

@available(iOS 17, macCatalyst 17, macOS 14, tvOS 17, visionOS 1, *)
public class MLCPUComputeDevice {}

@available(iOS 17, macCatalyst 17, macOS 14, tvOS 17, visionOS 1, *)
public class MLGPUComputeDevice {}

@available(iOS 17, macCatalyst 17, macOS 14, tvOS 17, visionOS 1, *)
public class MLNeuralEngineComputeDevice {}
