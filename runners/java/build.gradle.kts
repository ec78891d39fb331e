// Android library with the Java class and the C runner. NOT RUN HERE: this project has no Android SDK; the class and its JNI
// functions are tested on a desktop JDK only.
plugins {
    id("com.android.library") version "8.7.0"
}

android {
    namespace = "berxit.android"
    compileSdk = 35
    ndkVersion = "27.0.12077973"
    defaultConfig {
        minSdk = 24
        ndk { abiFilters += listOf("arm64-v8a", "armeabi-v7a", "x86_64") }
        externalNativeBuild {
            cmake {
                // The headers and the library of the package below, extracted by the task extractOnnxRuntime.
                arguments += listOf("-DBERXIT_JAVA=ON", "-DONNXRUNTIME_INCLUDE=${layout.buildDirectory.get()}/onnxruntime/headers")
            }
        }
    }
    externalNativeBuild { cmake { path = file("../c/CMakeLists.txt") } }
    sourceSets["main"].java.srcDirs("src/main/java")
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_11
        targetCompatibility = JavaVersion.VERSION_11
    }
}

// The AAR contains libonnxruntime.so for every ABI, which the app packages, and the C headers.
val onnxRuntime: Configuration by configurations.creating

dependencies {
    implementation("com.microsoft.onnxruntime:onnxruntime-android:1.20.0")
    onnxRuntime("com.microsoft.onnxruntime:onnxruntime-android:1.20.0@aar")
}

val extractOnnxRuntime by tasks.registering(Copy::class) {
    from({ zipTree(onnxRuntime.singleFile) }) { include("headers/**") }
    into(layout.buildDirectory.dir("onnxruntime"))
}

tasks.matching { it.name.startsWith("configureCMake") }.configureEach { dependsOn(extractOnnxRuntime) }
