// swift-tools-version: 6.1
import PackageDescription

let plainSettings: [SwiftSetting] = [
  .swiftLanguageMode(.v6),
  .enableExperimentalFeature("Lifetimes"),
]

let settings: [SwiftSetting] = plainSettings + [
  // CLinux needs glibc's extensions, and with them some structures look different: every C module that is imported
  // beside it must see them the same way.
  .unsafeFlags(["-Xcc", "-D_GNU_SOURCE"]),
]

let protoFiles = [
  "Descriptors", "Files", "Inventory", "Machines", "Memory", "Namespaces", "Rpc", "Sockets", "Statistics", "Tasks",
  "Torpor",
].map { "Messages/\($0).proto" }

let package = Package(
  name: "torpor",
  products: [
    .executable(name: "torpor", targets: ["TorporCommand"]),
    .library(name: "Torpor", targets: ["Torpor"]),
  ],
  dependencies: [
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
    .package(url: "https://github.com/apple/swift-protobuf", from: "1.39.0"),
    .package(url: "https://github.com/apple/swift-system", from: "1.8.1"),
    .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
  ],
  targets: [
    .target(name: "CLinux"),
    .systemLibrary(name: "CXXHash", providers: [.apt(["libxxhash-dev"])]),
    .target(
      name: "Linux",
      dependencies: ["CLinux", .product(name: "SystemPackage", package: "swift-system")],
      swiftSettings: settings),
    .target(
      name: "Tracing", dependencies: ["Linux", "CLinux"], exclude: ["Architecture/README.md"], swiftSettings: settings),
    .target(
      name: "Images",
      dependencies: [
        "Linux", "CLinux", "CXXHash", .product(name: "SwiftProtobuf", package: "swift-protobuf"),
      ],
      exclude: protoFiles,
      swiftSettings: settings,
      // The static library: the command shall start without a search for shared ones.
      linkerSettings: [.linkedLibrary(":libxxhash.a")]),
    .target(
      name: "Torpor",
      dependencies: ["Images", "Tracing", "Linux", "CLinux", .product(name: "Logging", package: "swift-log")],
      swiftSettings: settings),
    .executableTarget(
      name: "TorporCommand",
      dependencies: [
        "Torpor", "Linux", "CLinux", .product(name: "ArgumentParser", package: "swift-argument-parser"),
      ],
      swiftSettings: settings),
    .testTarget(name: "LinuxTests", dependencies: ["Linux", "CLinux"], swiftSettings: settings),
    .testTarget(name: "TracingTests", dependencies: ["Tracing", "Linux", "CLinux"], swiftSettings: settings),
    .testTarget(name: "ImagesTests", dependencies: ["Images"], swiftSettings: settings),
    .testTarget(name: "TorporTests", dependencies: ["Torpor", "Images", "Tracing", "Linux", "CLinux"], swiftSettings: settings),
    .target(name: "CVictims", path: "Tests/CVictims"),
    .testTarget(
      name: "IntegrationTests", dependencies: ["CVictims", "TorporCommand"], swiftSettings: plainSettings),
  ]
)
