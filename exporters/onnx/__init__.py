"""ONNX files: for ONNX Runtime on a CPU and for TensorRT."""
