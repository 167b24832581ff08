// Cut the object at a click out of an image, with graphs that `segment-anything export` wrote:
//
//     segment-anything export nano --out exported
//     segment exported/nano photo.jpg 320 200 mask.png
//
// Needs the C++ interface of ONNX Runtime and the headers of stb (stb_image.h, stb_image_write.h), nothing else.
// The encoder may have been exported with --normalise or without.

#include <onnxruntime_cxx_api.h>

#define STB_IMAGE_IMPLEMENTATION
#include <stb_image.h>
#define STB_IMAGE_WRITE_IMPLEMENTATION
#include <stb_image_write.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

struct Image {  // RGB, row by row
    int height, width;
    std::vector<uint8_t> pixels;
};

Image read_image(const std::string& path) {
    int width, height, channels;
    uint8_t* data = stbi_load(path.c_str(), &width, &height, &channels, 3);
    if (!data) throw std::runtime_error(path + ": " + stbi_failure_reason());
    Image image{height, width, std::vector<uint8_t>(data, data + size_t(3) * height * width)};
    stbi_image_free(data);
    return image;
}

// Resize the middle axis of [outer][length][inner] with a triangle filter that averages when it shrinks, as Pillow's
// bilinear filter does. Other filters (OpenCV's INTER_LINEAR) do not average, and masks suffer.
std::vector<uint8_t> resize_axis(const std::vector<uint8_t>& in, int outer, int length, int inner, int target) {
    const double scale = double(length) / target, reach = std::max(scale, 1.0);
    std::vector<uint8_t> out(size_t(outer) * target * inner);
    for (int i = 0; i < target; ++i) {
        const double centre = (i + 0.5) * scale;
        const int first = std::max(0, int(centre - reach + 0.5)), last = std::min(length, int(centre + reach + 0.5));
        std::vector<double> weights;
        double total = 0;
        for (int j = first; j < last; ++j) {
            weights.push_back(std::max(0.0, 1 - std::abs(j + 0.5 - centre) / reach));
            total += weights.back();
        }
        for (int o = 0; o < outer; ++o)
            for (int c = 0; c < inner; ++c) {
                double sum = 0;
                for (int j = first; j < last; ++j)
                    sum += weights[j - first] * in[(size_t(o) * length + j) * inner + c];
                out[(size_t(o) * target + i) * inner + c] = uint8_t(std::clamp(sum / total + 0.5, 0.0, 255.0));
            }
    }
    return out;
}

Image resize_longest_side(const Image& image, int side) {
    const double scale = double(side) / std::max(image.height, image.width);
    const int height = int(image.height * scale + 0.5), width = int(image.width * scale + 0.5);
    auto narrowed = resize_axis(image.pixels, image.height, image.width, 3, width);
    return {height, width, resize_axis(narrowed, 1, image.height, width * 3, height)};
}

// What an encoder without --normalise takes: (1, 3, side, side) float, normalised, zeros at the bottom and the right.
std::vector<float> normalised(const Image& image, int side) {
    const std::array<float, 3> mean{123.675f, 116.28f, 103.53f}, deviation{58.395f, 57.12f, 57.375f};
    std::vector<float> input(size_t(3) * side * side, 0.0f);
    for (int c = 0; c < 3; ++c)
        for (int y = 0; y < image.height; ++y)
            for (int x = 0; x < image.width; ++x)
                input[(size_t(c) * side + y) * side + x] =
                    (image.pixels[(size_t(y) * image.width + x) * 3 + c] - mean[c]) / deviation[c];
    return input;
}

class Model {
  public:
    explicit Model(const std::string& stem)
        : encoder_(env_, native(stem + "_encoder.onnx").c_str(), Ort::SessionOptions{}),
          decoder_(env_, native(stem + "_decoder.onnx").c_str(), Ort::SessionOptions{}) {
        Ort::AllocatorWithDefaultOptions allocator;
        auto metadata = encoder_.GetModelMetadata();
        side_ = std::stoi(metadata.LookupCustomMetadataMapAllocated("segment_anything.image_size", allocator).get());
        input_name_ = encoder_.GetInputNameAllocated(0, allocator).get();
        auto mask_shape = decoder_.GetInputTypeInfo(3).GetTensorTypeAndShapeInfo().GetShape();  // mask_input
        mask_side_ = mask_shape[3];
    }

    void set_image(const Image& image) {
        original_ = {image.height, image.width};
        Image resized = resize_longest_side(image, side_);
        scale_x_ = float(resized.width) / image.width;
        scale_y_ = float(resized.height) / image.height;
        const char* inputs[] = {input_name_.c_str()};
        const char* outputs[] = {"image_embeddings"};
        std::vector<float> plain;
        Ort::Value input{nullptr};
        if (input_name_ == "image") {  // exported with --normalise: pixels as they are
            input = tensor(resized.pixels, {resized.height, resized.width, 3});
        } else {
            plain = normalised(resized, side_);
            input = tensor(plain, {1, 3, side_, side_});
        }
        embedding_ = encoder_.Run(Ort::RunOptions{}, inputs, &input, 1, outputs, 1);
    }

    // The best of the three masks of an ambiguous click: 255 inside, 0 outside, and its predicted IoU.
    std::pair<std::vector<uint8_t>, float> predict(float x, float y) {
        std::vector<float> coords{x * scale_x_, y * scale_y_, 0, 0}, labels{1, -1};  // the click and the padding point
        std::vector<float> mask(size_t(mask_side_ * mask_side_), 0), has_mask{0};
        std::vector<float> size{float(original_[0]), float(original_[1])};
        std::vector<Ort::Value> values;
        values.push_back(std::move(embedding_[0]));
        values.push_back(tensor(coords, {1, 2, 2}));
        values.push_back(tensor(labels, {1, 2}));
        values.push_back(tensor(mask, {1, 1, mask_side_, mask_side_}));
        values.push_back(tensor(has_mask, {1}));
        values.push_back(tensor(size, {2}));
        const char* inputs[] = {"image_embeddings", "point_coords",   "point_labels",
                                "mask_input",       "has_mask_input", "orig_im_size"};
        const char* outputs[] = {"masks", "iou_predictions"};
        auto answers = decoder_.Run(Ort::RunOptions{}, inputs, values.data(), values.size(), outputs, 2);
        embedding_[0] = std::move(values[0]);  // for the next click

        const float* iou = answers[1].GetTensorData<float>();
        const auto best = std::max_element(iou + 1, iou + 4) - iou;  // 0 is the mask for clear prompts
        const size_t pixels = size_t(original_[0]) * original_[1];
        const float* logits = answers[0].GetTensorData<float>() + best * pixels;
        std::vector<uint8_t> found(pixels);
        std::transform(logits, logits + pixels, found.begin(), [](float logit) { return logit > 0 ? 255 : 0; });
        return {found, iou[best]};
    }

  private:
    static std::basic_string<ORTCHAR_T> native(const std::string& path) { return {path.begin(), path.end()}; }

    template <typename T> Ort::Value tensor(std::vector<T>& data, std::vector<int64_t> shape) {
        return Ort::Value::CreateTensor<T>(memory_, data.data(), data.size(), shape.data(), shape.size());
    }

    Ort::Env env_{ORT_LOGGING_LEVEL_WARNING, "segment"};
    Ort::MemoryInfo memory_ = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    Ort::Session encoder_, decoder_;
    std::vector<Ort::Value> embedding_;
    std::string input_name_;
    std::array<int, 2> original_{};
    int64_t mask_side_ = 0;
    int side_ = 0;
    float scale_x_ = 1, scale_y_ = 1;
};

int main(int count, char** arguments) try {
    if (count != 6) throw std::runtime_error("usage: segment EXPORT_FOLDER/MODEL IMAGE X Y MASK.png");
#ifndef _WIN32
    setenv("ORT_DISABLE_TELEMETRY", "1", 0);  // newer versions send usage data unless told not to
#endif
    Image image = read_image(arguments[2]);
    Model model(arguments[1]);
    model.set_image(image);
    auto [mask, iou] = model.predict(std::stof(arguments[3]), std::stof(arguments[4]));
    if (!stbi_write_png(arguments[5], image.width, image.height, 1, mask.data(), image.width))
        throw std::runtime_error(std::string("cannot write ") + arguments[5]);
    std::cout << arguments[5] << ", predicted IoU " << iou << "\n";
    return 0;
} catch (const std::exception& error) {
    std::cerr << "Error: " << error.what() << "\n";
    return 1;
}
