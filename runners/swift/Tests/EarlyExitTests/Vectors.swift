import Foundation
import XCTest

@testable import EarlyExit

/// The Python runtime's answers (`PYTHONPATH=.:tests/runtime python tests/swift/make_vectors.py`): both runners must agree.
enum Vectors {
    /// The bundles in models/, whose segments are stood in for.
    static func models() throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: url("models").path).sorted()
    }

    static func read<T: Decodable>(_ name: String, as type: T.Type) throws -> T {
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        return try decoder.decode(type, from: Data(contentsOf: url(name)))
    }
}

extension XCTestCase {
    /// A folder of its own for one test, deleted after it.
    func temporaryFolder() throws -> URL {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        addTeardownBlock { try? FileManager.default.removeItem(at: folder) }
        return folder
    }

    /// A bundle of models/, put together: what all share, and what it has of its own.
    func bundleFolder(_ name: String) throws -> URL {
        let folder = try temporaryFolder().appendingPathComponent("bundle")
        try FileManager.default.copyItem(at: Vectors.url("bundle"), to: folder)
        for file in ["manifest.json", "golden.json"] {
            try FileManager.default.copyItem(
                at: Vectors.url("models/\(name)/\(file)"), to: folder.appendingPathComponent(file))
        }
        return folder
    }

    /// The bundle's runner, with the bundle's golden inputs for segments.
    func runner(_ name: String) throws -> EarlyExitRunner {
        let bundle = try ModelBundle(at: bundleFolder(name))
        return try EarlyExitRunner(bundle: bundle, executor: Stored(bundle.readGolden()))
    }

    func message(_ error: Error) -> String {
        (error as? EarlyExitError)?.message ?? "\(error)"
    }

    func assertFails<T>(_ expression: @autoclosure () throws -> T, _ told: String, line: UInt = #line) {
        XCTAssertThrowsError(try expression(), line: line) { error in
            XCTAssertTrue(message(error).contains(told), message(error), line: line)
        }
    }
}

/// Gives out what a model would say, row after row: one input after another gets the next one's outputs.
final class Stored: SegmentExecutor, @unchecked Sendable {
    private let rows: [[LayerOutput]]
    private var next = 0
    /// The tokens of every input, and the layers that ran, in their order.
    private(set) var inputs: [Tokens] = []
    private(set) var ran: [Int] = []
    /// What the time would show, were every segment to take 10 ms.
    var seconds: Double { Double(ran.count) / 100 }

    init(_ rows: [[LayerOutput]]) {
        self.rows = rows
    }

    /// A bundle's golden inputs.
    convenience init(_ golden: Golden) {
        let rows = golden.logits.enumerated().map { row, layers in
            layers.enumerated().map { layer, logits in
                LayerOutput(logits: logits.map(Float.init), lte: golden.lte.map { Float($0[row][layer]) })
            }
        }
        self.init(rows)
    }

    func embed(_ tokens: Tokens) -> any LayerRunner {
        inputs.append(tokens)
        next += 1
        return Row(self, rows[(next - 1) % rows.count])
    }

    private final class Row: LayerRunner {
        private let stored: Stored
        private let outputs: [LayerOutput]

        init(_ stored: Stored, _ outputs: [LayerOutput]) {
            self.stored = stored
            self.outputs = outputs
        }

        func layer(_ layer: Int) -> LayerOutput {
            stored.ran.append(layer)
            return outputs[layer - 1]
        }
    }
}
