import EarlyExit
import Foundation
import XCTest

/// Performance test of the bundle in the app: writes bench.json and the compute plan. Run it on a device, in the Release
/// configuration, without the debugger.
///
/// Environment variables of the scheme: EARLYEXIT_BUNDLE, path of a bundle (default: the folder "bundle" in the app);
/// EARLYEXIT_OUTPUT, folder for the results (default: a temporary folder, whose path is printed); EARLYEXIT_ROUNDS
/// (default: 20).
final class BenchTests: XCTestCase {
    func testBench() async throws {
        let folder = try bundle()
        let runner = try await EarlyExitRunner.load(folder)
        let texts = try runner.bundle.goldenTexts()
        let result = try await bench(runner, texts: texts, rounds: Int(variable("EARLYEXIT_ROUNDS") ?? "") ?? 20)
        let data = try JSONSerialization.data(withJSONObject: result, options: [.prettyPrinted, .sortedKeys])
        try write(data, "bench.json")
        let layers = try XCTUnwrap(result["by_layer"] as? [String: Any])
        XCTAssertEqual(layers.count, runner.manifest.exits.count)
    }

    func testComputePlan() async throws {
        guard #available(iOS 17.4, macCatalyst 17.4, macOS 14.4, tvOS 17.4, visionOS 1.1, *) else {
            throw XCTSkip("MLComputePlan needs iOS 17.4 or macOS 14.4")
        }
        let plans = try await EarlyExitRunner.computePlan(of: bundle())
        let lines = plans.map { plan in
            let counts = plan.operations.sorted { $0.key.rawValue < $1.key.rawValue }
            let devices = counts.map { "\($0.value) on \($0.key.rawValue)" }.joined(separator: ", ")
            return "\(plan.segment): \(devices). On the CPU: \(plan.operationsOnCPU.joined(separator: ", "))"
        }
        try write(Data((lines.joined(separator: "\n") + "\n").utf8), "compute_plan.txt")
        XCTAssertFalse(plans.isEmpty)
    }

    private func bundle() throws -> URL {
        if let path = variable("EARLYEXIT_BUNDLE") { return URL(fileURLWithPath: path) }
        guard let folder = Bundle.main.url(forResource: "bundle", withExtension: nil) else {
            throw XCTSkip("no bundle: add one to the app, or set EARLYEXIT_BUNDLE")
        }
        return folder
    }

    private func write(_ data: Data, _ name: String) throws {
        let folder = variable("EARLYEXIT_OUTPUT").map { URL(fileURLWithPath: $0) } ?? FileManager.default.temporaryDirectory
        let file = folder.appendingPathComponent(name)
        try data.write(to: file)
        print("written: \(file.path)")
        #if canImport(Darwin)
        let attachment = XCTAttachment(data: data)
        attachment.name = name
        attachment.lifetime = .keepAlways
        add(attachment)
        #endif
    }

    private func variable(_ name: String) -> String? {
        ProcessInfo.processInfo.environment[name]
    }
}
