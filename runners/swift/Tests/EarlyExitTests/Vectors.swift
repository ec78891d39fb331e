import Foundation
import XCTest

@testable import EarlyExit

/// Test vectors from the Python runtime (`tests/runners/make_vectors.py`).
enum Vectors {
    /// Path of a test vector in the repository. All runners read the same files.
    static func url(_ name: String) -> URL {
        var folder = URL(fileURLWithPath: #filePath).resolvingSymlinksInPath()
        for _ in 0..<5 { folder.deleteLastPathComponent() }
        return folder.appendingPathComponent("tests/runners/vectors/\(name)")
    }

    /// Names of the bundles in models/, whose segments are replaced by stored outputs.
    static func models() throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: url("models").path).sorted()
    }

    static func read<T: Decodable>(_ name: String, as type: T.Type) throws -> T {
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        return try decoder.decode(type, from: Data(contentsOf: url(name)))
    }

    static func json(_ name: String) throws -> JSON {
        try JSON.read(url(name))
    }
}

extension XCTestCase {
    /// Temporary folder that is deleted after the test.
    func temporaryFolder() throws -> URL {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        addTeardownBlock { try? FileManager.default.removeItem(at: folder) }
        return folder
    }

    /// Complete bundle in a temporary folder, from the shared files and those in models/.
    func bundleFolder(_ name: String) throws -> URL {
        let folder = try temporaryFolder().appendingPathComponent("bundle")
        try FileManager.default.copyItem(at: Vectors.url("bundle"), to: folder)
        for file in ["manifest.json", "golden.json"] {
            try FileManager.default.copyItem(
                at: Vectors.url("models/\(name)/\(file)"), to: folder.appendingPathComponent(file))
        }
        return folder
    }

    /// Runner of a bundle whose segments return the golden outputs.
    func runner(_ name: String) throws -> EarlyExitRunner {
        let bundle = try ModelBundle(at: bundleFolder(name))
        return try EarlyExitRunner(bundle: bundle, executor: Stored(bundle.readGolden()))
    }

    func message(_ error: Error) -> String {
        (error as? EarlyExitError)?.message ?? "\(error)"
    }

    func assertFails<T>(_ expression: @autoclosure () throws -> T, _ expected: String, line: UInt = #line) {
        XCTAssertThrowsError(try expression(), line: line) { error in
            XCTAssertTrue(message(error).contains(expected), message(error), line: line)
        }
    }

    func assertFails<T>(_ expected: String, line: UInt = #line, _ body: () async throws -> T) async {
        do {
            _ = try await body()
            XCTFail("no error", line: line)
        } catch {
            XCTAssertTrue(message(error).contains(expected), message(error), line: line)
        }
    }
}

/// Executor that returns stored outputs: each input gets the next row.
final class Stored: SegmentExecutor {
    private struct State: Sendable {
        var inputs: [Tokens] = []
        var ran: [Int] = []
    }
    private let rows: [[LayerOutput]]
    private let state = Locked(State())
    /// Called before each layer.
    private let before: @Sendable (Int) -> Void

    /// Tokens of every input, in order.
    var inputs: [Tokens] { state.withLock { $0.inputs } }
    /// Layers that were run, in order.
    var ran: [Int] { state.withLock { $0.ran } }
    /// Simulated time in seconds; every segment takes 10 ms.
    var seconds: Double { Double(ran.count) / 100 }

    init(_ rows: [[LayerOutput]], before: @escaping @Sendable (Int) -> Void = { _ in }) {
        self.rows = rows
        self.before = before
    }

    /// Executor for the golden outputs of a bundle.
    convenience init(_ golden: Golden, before: @escaping @Sendable (Int) -> Void = { _ in }) {
        let rows = golden.logits.enumerated().map { row, layers in
            layers.enumerated().map { layer, logits in
                LayerOutput(logits: logits.map(Float.init), lte: golden.lte.map { Float($0[row][layer]) })
            }
        }
        self.init(rows, before: before)
    }

    func embed(_ tokens: Tokens) -> any LayerRunner {
        let place = state.withLock { state in
            state.inputs.append(tokens)
            return state.inputs.count - 1
        }
        return Row(self, rows[place % rows.count])
    }

    private final class Row: LayerRunner {
        private let stored: Stored
        private let outputs: [LayerOutput]

        init(_ stored: Stored, _ outputs: [LayerOutput]) {
            self.stored = stored
            self.outputs = outputs
        }

        func layer(_ layer: Int) -> LayerOutput {
            stored.before(layer)
            stored.state.withLock { $0.ran.append(layer) }
            return outputs[layer - 1]
        }
    }
}
