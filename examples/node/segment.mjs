// Cut the object at a click out of an image, with graphs that `segment-anything export` wrote:
//
//     segment-anything export nano --normalise --out exported
//     npm install
//     node segment.mjs exported/nano.json photo.png 320 200 mask.png
//
// In a browser the same calls work with onnxruntime-web; there the canvas gives the pixels.

process.env.ORT_DISABLE_TELEMETRY ??= "1"; // newer versions of onnxruntime send usage data unless told not to

import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { PNG } from "pngjs";

const ort = await import("onnxruntime-node"); // imported here, after the variable is set

class Model {
  /** Open the JSON that an export wrote. */
  static async open(file) {
    const model = new Model();
    model.manifest = JSON.parse(readFileSync(file, "utf8"));
    if (!model.manifest.normalises) throw new Error(`${file}: export with --normalise for this example`);
    const load = (role) => ort.InferenceSession.create(path.join(path.dirname(file), model.manifest.files[role]));
    model.encoder = await load("encoder");
    model.decoder = await load("batched");
    return model;
  }

  /** Encode an image {width, height, rgb: Uint8Array}. */
  async setImage(image) {
    const scale = this.manifest.image_size / Math.max(image.height, image.width);
    const [height, width] = [image.height, image.width].map((side) => Math.floor(side * scale + 0.5));
    const narrowed = resizeAxis(image.rgb, image.height, image.width, 3, width);
    const resized = resizeAxis(narrowed, 1, image.height, width * 3, height);
    const input = new ort.Tensor("uint8", resized, [height, width, 3]);
    this.embedding = (await this.encoder.run({ image: input })).image_embeddings;
    this.size = { height: image.height, width: image.width, inputHeight: height, inputWidth: width };
  }

  /** Masks for clicks [{x, y}, ...], one object each: [{mask: Uint8Array of 0 and 1, iou}, ...]. */
  async predict(clicks) {
    const { height, width, inputHeight, inputWidth } = this.size;
    const coords = clicks.flatMap(({ x, y }) => [(x * inputWidth) / width, (y * inputHeight) / height, 0, 0]);
    const labels = clicks.flatMap(() => [1, -1]); // the click, and the padding point that stands for "no box"
    const [count, side] = [clicks.length, this.manifest.mask_input_size];
    const answer = await this.decoder.run({
      image_embeddings: this.embedding,
      point_coords: new ort.Tensor("float32", Float32Array.from(coords), [count, 2, 2]),
      point_labels: new ort.Tensor("float32", Float32Array.from(labels), [count, 2]),
      mask_input: new ort.Tensor("float32", new Float32Array(count * side * side), [count, 1, side, side]),
      has_mask_input: new ort.Tensor("float32", new Float32Array(count), [count]),
    });
    const ious = answer.iou_predictions.data;
    const logits = answer.low_res_masks.data;
    return clicks.map((_, object) => {
      const best = [1, 2, 3].reduce((a, b) => (ious[object * 4 + b] > ious[object * 4 + a] ? b : a)); // 0: clear prompts
      const start = (object * 4 + best) * side * side;
      const mask = this.upscale(logits.subarray(start, start + side * side), side);
      return { mask, iou: ious[object * 4 + best] };
    });
  }

  /** Low-resolution logits to a mask in original pixels: bilinear to the input square, cropped, bilinear again. */
  upscale(logits, side) {
    const { height, width, inputHeight, inputWidth } = this.size;
    const square = this.manifest.image_size;
    const input = bilinear(logits, side, side, square, square);
    const cropped = new Float32Array(inputHeight * inputWidth);
    for (let y = 0; y < inputHeight; y++) {
      cropped.set(input.subarray(y * square, y * square + inputWidth), y * inputWidth);
    }
    const full = bilinear(cropped, inputHeight, inputWidth, height, width);
    return Uint8Array.from(full, (logit) => (logit > this.manifest.mask_threshold ? 1 : 0));
  }
}

/** Bilinear interpolation without corner alignment, as the network was trained with. */
function bilinear(values, height, width, outHeight, outWidth) {
  const axis = (inside, out) =>
    Array.from({ length: out }, (_, i) => {
      const at = Math.max(((i + 0.5) * inside) / out - 0.5, 0);
      const low = Math.min(Math.floor(at), inside - 1);
      return [low, Math.min(low + 1, inside - 1), at - low];
    });
  const columns = axis(width, outWidth);
  const out = new Float32Array(outHeight * outWidth);
  axis(height, outHeight).forEach(([top, bottom, down], y) => {
    columns.forEach(([left, right, across], x) => {
      const above = values[top * width + left] * (1 - across) + values[top * width + right] * across;
      const below = values[bottom * width + left] * (1 - across) + values[bottom * width + right] * across;
      out[y * outWidth + x] = above * (1 - down) + below * down;
    });
  });
  return out;
}

/** Resize the middle axis of [outer][length][inner] bytes with a triangle filter that averages when it shrinks. */
function resizeAxis(bytes, outer, length, inner, target) {
  const scale = length / target;
  const reach = Math.max(scale, 1);
  const out = new Uint8Array(outer * target * inner);
  for (let i = 0; i < target; i++) {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.floor(centre - reach + 0.5));
    const last = Math.min(length, Math.floor(centre + reach + 0.5));
    const weights = Array.from({ length: last - first }, (_, j) =>
      Math.max(0, 1 - Math.abs(first + j + 0.5 - centre) / reach),
    );
    const total = weights.reduce((a, b) => a + b);
    for (let o = 0; o < outer; o++) {
      for (let c = 0; c < inner; c++) {
        let sum = 0;
        weights.forEach((weight, j) => (sum += weight * bytes[(o * length + first + j) * inner + c]));
        out[(o * target + i) * inner + c] = Math.min(255, Math.floor(sum / total + 0.5));
      }
    }
  }
  return out;
}

function readPng(file) {
  const { width, height, data } = PNG.sync.read(readFileSync(file)); // RGBA
  const rgb = new Uint8Array(width * height * 3);
  for (let i = 0; i < width * height; i++) rgb.set(data.subarray(i * 4, i * 4 + 3), i * 3);
  return { width, height, rgb };
}

function writeMask(file, mask, { width, height }) {
  const png = new PNG({ width, height });
  mask.forEach((inside, i) => png.data.fill(inside ? 255 : 0, i * 4, i * 4 + 3));
  for (let i = 0; i < mask.length; i++) png.data[i * 4 + 3] = 255;
  writeFileSync(file, PNG.sync.write(png));
}

const [manifest, photo, x, y, out] = process.argv.slice(2);
if (!out) {
  console.error("usage: node segment.mjs EXPORT.json IMAGE.png X Y MASK.png");
  process.exit(1);
}
const model = await Model.open(manifest);
const image = readPng(photo);
await model.setImage(image);
const [{ mask, iou }] = await model.predict([{ x: Number(x), y: Number(y) }]);
writeMask(out, mask, image);
console.log(`${out}, predicted IoU ${iou.toFixed(3)}`);
