import CoreML
import XCTest

@testable import EarlyExit

/// Summary of CoreML's compute plan per segment.
final class ComputePlanTests: CoreMLTestCase {
    func testPlanCountsOperationsPerDevice() async throws {
        let bundle = try ModelBundle(at: bundleFolder("one_exit"))
        let engine = try await EarlyExitRunner.computePlan(source(bundle, LoadOptions(computeUnits: .cpuAndNeuralEngine)))
        XCTAssertEqual(engine.map(\.segment), ["segments/embeddings.mlpackage", "segments/layer_06.mlpackage"])
        XCTAssertEqual(engine[1].operations, [.neuralEngine: 2, .cpu: 1])
        XCTAssertEqual(engine[1].cost[.neuralEngine] ?? .nan, 0.8, accuracy: 1e-9)
        XCTAssertEqual(engine[1].operationsOnCPU, ["gather"])
        let cpu = try await EarlyExitRunner.computePlan(source(bundle, LoadOptions(computeUnits: .cpuOnly)))
        XCTAssertEqual(cpu[1].operations, [.cpu: 3])
        XCTAssertEqual(cpu[1].cost, [.cpu: 1])
        XCTAssertEqual(cpu[1].operationsOnCPU, ["conv", "softmax", "gather"])
    }
}
