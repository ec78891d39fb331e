// swift-tools-version:5.9
import PackageDescription

// Tests of CoreMLExecutor.swift on Linux, with a stand-in for CoreML.
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
