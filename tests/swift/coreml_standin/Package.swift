// swift-tools-version:5.9
import PackageDescription

// For Linux, where there is no CoreML: CoreMLExecutor.swift with a stand-in for what it uses of it.
//
//     swift test --package-path tests/swift/coreml_standin
let package = Package(
    name: "CoreMLStandin",
    targets: [
        .target(name: "CoreML"),
        .target(name: "EarlyExit", dependencies: ["CoreML"]),
        .testTarget(name: "CoreMLExecutorTests", dependencies: ["CoreML", "EarlyExit"]),
    ]
)
