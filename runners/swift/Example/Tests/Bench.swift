import EarlyExit
import Foundation

/// Measures a bundle on this device, and returns the content of a bench.json, as `berxit-bench` writes it: `berxit
/// compare`, `berxit-calibrate --budget-ms` and `berxit push` read it.
///
/// Every round predicts each text once at every exit (`stream`), once by the calibrated policy, and once by the graph
/// without exits, if the bundle contains it. There is no score, because the texts have no labels.
func bench(_ runner: EarlyExitRunner, texts: [[String]], rounds: Int) async throws -> [String: Any] {
    let manifest = runner.manifest
    let selfCheck = try await runner.verify().max() ?? 0
    let oneGraph = try runner.oneGraph()
    var depths = Dictionary(uniqueKeysWithValues: manifest.exits.map { ($0, Samples(layers: manifest.model.layers)) })
    var policy = Samples(layers: manifest.model.layers)
    var whole = Samples(layers: manifest.model.layers)
    // The first round is a warm-up.
    for round in 0...rounds {
        for text in texts {
            let pair = text.count == 2 ? text[1] : nil
            var found: [Prediction] = []
            for try await prediction in try runner.stream(text[0], pair) { found.append(prediction) }
            let early = try await runner.predict(text[0], pair)
            let late = try await oneGraph?.predict(text[0], pair)
            guard round > 0 else { continue }
            for prediction in found { depths[prediction.exitLayer]?.add(prediction) }
            policy.add(early)
            if let late { whole.add(late) }
        }
    }
    return [
        "bundle": runner.bundle.folder.lastPathComponent,
        "target": manifest.target,
        "backend": "coreml",
        "precision": manifest.precision,
        "task": manifest.model.task,
        "metric": NSNull(),
        "layers": manifest.model.layers,
        "device": deviceName,
        "machine": machine(),
        "threads": ProcessInfo.processInfo.activeProcessorCount,
        "inputs": texts.count,
        "rounds": rounds,
        "boundary": "from text to prediction, tokenization included",
        "self_check": selfCheck,
        "by_layer": Dictionary(uniqueKeysWithValues: depths.map { (String($0), $1.measured()) }),
        "by_threshold": [String: Any](),
        "criterion": manifest.policy.criterion.rawValue,
        "policy": manifest.isCalibrated ? policy.measured() : NSNull(),
        "one_graph": oneGraph == nil ? NSNull() : whole.measured(),
        "line": line(through: depths.values.map { ($0.averageExitLayer, $0.mean) }),
        "before": reading(),
        "after": reading(),
        "versions": ["os": ProcessInfo.processInfo.operatingSystemVersionString],
        "lazy": false,
        "memory_mib": NSNull(),
        "tuned": [Any](),
        "constant_score": NSNull(),
        "warnings": [Any](),
        "noise": NSNull(),
        "backend_options": [String: Any](),
        "sensors": [String: Any](),
        "energy": [String: Any](),
    ]
}

/// Latencies and exit layers of one operating point.
private struct Samples {
    private(set) var milliseconds: [Double] = []
    private var histogram: [Int]

    init(layers: Int) {
        histogram = [Int](repeating: 0, count: layers)
    }

    mutating func add(_ prediction: Prediction) {
        milliseconds.append(prediction.latencyMs)
        histogram[prediction.exitLayer - 1] += 1
    }

    var mean: Double { milliseconds.reduce(0, +) / Double(max(milliseconds.count, 1)) }

    var averageExitLayer: Double {
        let sum = histogram.enumerated().reduce(0) { $0 + ($1.offset + 1) * $1.element }
        return Double(sum) / Double(max(milliseconds.count, 1))
    }

    func measured() -> [String: Any] {
        let sorted = milliseconds.sorted()
        return [
            "latency": [
                "mean": mean, "p50": percentile(0.5, sorted), "p90": percentile(0.9, sorted),
                "p99": percentile(0.99, sorted),
            ],
            "average_exit_layer": averageExitLayer, "histogram": histogram, "queries": milliseconds.count,
            "score": NSNull(),
        ]
    }

    /// Percentile of ascending values, with linear interpolation.
    private func percentile(_ share: Double, _ sorted: [Double]) -> Double {
        guard !sorted.isEmpty else { return .nan }
        let place = share * Double(sorted.count - 1)
        let below = sorted[Int(place)]
        let above = sorted[min(Int(place) + 1, sorted.count - 1)]
        return below + (place - place.rounded(.down)) * (above - below)
    }
}

/// Least-squares line of the mean latency over the exit layer; null if there is only one exit.
private func line(through points: [(layer: Double, ms: Double)]) -> Any {
    let count = Double(points.count)
    let layer = points.map(\.layer).reduce(0, +) / count
    let ms = points.map(\.ms).reduce(0, +) / count
    let spread = points.map { ($0.layer - layer) * ($0.layer - layer) }.reduce(0, +)
    guard spread > 0 else { return NSNull() }
    let slope = points.map { ($0.layer - layer) * ($0.ms - ms) }.reduce(0, +) / spread
    let total = points.map { ($0.ms - ms) * ($0.ms - ms) }.reduce(0, +)
    let residual = points.reduce(0.0) { sum, point in
        let error = point.ms - ms - slope * (point.layer - layer)
        return sum + error * error
    }
    return [
        "intercept_ms": ms - slope * layer, "ms_per_layer": slope, "r_squared": total > 0 ? 1 - residual / total : 1,
    ]
}

/// Name of the device in the device catalogue of `berxit-export`.
private var deviceName: String {
    #if os(iOS) && !targetEnvironment(macCatalyst)
    return machineName.hasPrefix("iPad") ? "ipad" : "iphone"
    #else
    return "mac"
    #endif
}

private func machine() -> [String: Any] {
    [
        "system": "Darwin", "architecture": "arm64", "processor": machineName, "board": "", "gpu": "",
        "cores": ProcessInfo.processInfo.activeProcessorCount,
        "memory_gib": Double(ProcessInfo.processInfo.physicalMemory) / Double(1 << 30),
    ]
}

/// Model identifier, such as "iPhone17,1".
private var machineName: String {
    var info = utsname()
    uname(&info)
    return withUnsafeBytes(of: &info.machine) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
}

/// Sensors that an app cannot read.
private func reading() -> [String: Any] {
    let names = ["cpu_mhz", "temperature_c", "load", "governor", "peak_memory_mib", "power_mode"]
    return Dictionary(uniqueKeysWithValues: names.map { ($0, NSNull()) })
}
