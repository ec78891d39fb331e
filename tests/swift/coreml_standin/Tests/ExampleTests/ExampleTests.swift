import CoreML
import Foundation
import XCTest

@testable import EarlyExit
@testable import ExampleApp

/// The example app and its bench, on the stand-in for CoreML.
final class ExampleTests: XCTestCase {
    override func setUp() {
        Simulation.shared.reset()
    }

    func testClassifierPredictsTheLastTextOnly() async throws {
        let prediction = try await lastPrediction(bundleFolder("fewer_exits"))
        XCTAssertEqual(prediction?.exitLayer, 2)
    }

    func testClassifierShowsTheReasonOfAFailure() async throws {
        let state = try await stateWithoutBundle(temporaryFolder().appendingPathComponent("none"))
        guard case .failed(let message) = state else { return XCTFail("\(state)") }
        XCTAssertTrue(message.contains("no bundle at"), message)
    }

    func testBenchHasALatencyForEveryExit() async throws {
        let runner = try await EarlyExitRunner.load(standinBundle())
        let result = try await bench(runner, texts: runner.bundle.goldenTexts(), rounds: 2)
        let layers = try XCTUnwrap(result["by_layer"] as? [String: [String: Any]])
        XCTAssertEqual(layers.keys.sorted(), ["2", "3", "6"])
        XCTAssertEqual(layers["3"]?["histogram"] as? [Int], [0, 0, 10, 0, 0, 0])
        XCTAssertLessThan(result["self_check"] as? Double ?? .infinity, 1e-6)
        let line = try XCTUnwrap(result["line"] as? [String: Double])
        XCTAssertGreaterThan(line["ms_per_layer"] ?? 0, 0)
        let data = try JSONSerialization.data(withJSONObject: result, options: .sortedKeys)
        // tests/swift/test_swift.py reads it as the bench's own.
        if let output = ProcessInfo.processInfo.environment["EARLYEXIT_OUTPUT"] {
            try data.write(to: URL(fileURLWithPath: output).appendingPathComponent("bench.json"))
        }
    }

    /// Bundle whose golden outputs are those of the stand-in's models.
    private func standinBundle() throws -> URL {
        let folder = try bundleFolder("fewer_exits")
        let place = folder.appendingPathComponent("golden.json")
        var golden = try XCTUnwrap(JSONSerialization.jsonObject(with: Data(contentsOf: place)) as? [String: Any])
        let ids = try XCTUnwrap(golden["input_ids"] as? [[Int]])
        let before = [0, 0, 2, 5, 5, 5]  // sum of the exit layers before layers 1 to 6
        golden["logits"] = ids.map { ids in (1...6).map { [ids.reduce(0, +) + before[$0 - 1], $0, 0] } }
        golden["lte"] = ids.map { _ in (1...6).map { Float($0) / 10 } }
        let data = try JSONSerialization.data(withJSONObject: golden)
        try data.write(to: place)
        let manifestPlace = folder.appendingPathComponent("manifest.json")
        var manifest = try XCTUnwrap(
            JSONSerialization.jsonObject(with: Data(contentsOf: manifestPlace)) as? [String: Any])
        manifest["golden"] = ["file": "golden.json", "sha256": try Checksum.of(place)]
        try JSONSerialization.data(withJSONObject: manifest).write(to: manifestPlace)
        return folder
    }
}

@MainActor
private func lastPrediction(_ folder: URL) async throws -> Prediction? {
    let classifier = Classifier()
    await classifier.load(folder)
    for text in ["turn", "turn the", "turn the lights off"] { classifier.predict(text) }
    await classifier.wait()
    return classifier.prediction
}

@MainActor
private func stateWithoutBundle(_ folder: URL) async throws -> Classifier.State {
    let classifier = Classifier()
    await classifier.load(folder)
    return classifier.state
}
