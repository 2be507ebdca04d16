// Draws, adapts, recognises. A drawing is ink in the alpha channel of a canvas.
import {loadAndCompile, loadLiteRt, Tensor} from '@litertjs/core';

const SIZE = 28; // of the images that the network sees, as Omniglot's
const PAPER = 280; // of a pad's canvas
const PEN = 16;
const WAYS = 5;
const $ = (id) => document.getElementById(id);

const classes = Array.from({length: WAYS}, (_, i) => makePad(`Character ${i + 1}`, $('classes'), learn));
const query = makePad('One of them again', $('asked'), recognise);
const meters = Array.from({length: WAYS}, (_, i) => makeMeter(i + 1));
let model;
let trajectory; // the weights before adaptation and after every step

function makePad(name, parent, changed) {
  const element = $('pad').content.firstElementChild.cloneNode(true);
  const [caption, paper, seen, clear, photo] = ['figcaption', '.paper', '.seen', '.clear', '.photo']
    .map((what) => element.querySelector(what));
  const pad = {name, drawn: false, pixels: new Float32Array(SIZE * SIZE)};
  const ink = paper.getContext('2d', {willReadFrequently: true});
  Object.assign(ink, {lineWidth: PEN, lineCap: 'round', lineJoin: 'round'});
  caption.textContent = name;
  paper.setAttribute('aria-label', `${name}: draw here; Delete clears`);
  seen.setAttribute('aria-label', `${name}, as the network sees it`);
  clear.setAttribute('aria-label', `Clear ${name}`);
  photo.setAttribute('aria-label', `Photograph ${name}`);

  const show = (drawn, centred) => {
    pad.drawn = drawn;
    pad.pixels = reduced(ink, centred);
    const small = seen.getContext('2d');
    const image = small.createImageData(SIZE, SIZE);
    pad.pixels.forEach((value, i) => (image.data[4 * i + 3] = Math.round(255 * value)));
    small.putImageData(image, 0, 0);
    changed();
  };
  const empty = () => {
    ink.clearRect(0, 0, PAPER, PAPER);
    show(false, true);
  };
  let pointer = null;
  let isPhoto = false;
  const line = (event) => {
    const scale = PAPER / paper.clientWidth;
    ink.lineTo(
      (event.offsetX - paper.clientLeft) * scale, (event.offsetY - paper.clientTop) * scale);
    ink.stroke();
  };
  paper.addEventListener('pointerdown', (event) => {
    if (pointer !== null || event.button) return;
    if (isPhoto) empty();
    isPhoto = false;
    pointer = event.pointerId;
    paper.setPointerCapture(pointer);
    ink.beginPath();
    line(event);
  });
  paper.addEventListener('pointermove', (event) => event.pointerId === pointer && line(event));
  for (const kind of ['pointerup', 'pointercancel']) {
    paper.addEventListener(kind, (event) => {
      if (event.pointerId !== pointer) return;
      pointer = null;
      show(true, true);
    });
  }
  paper.addEventListener('keydown', (event) => /^(Delete|Backspace)$/.test(event.key) && empty());
  clear.addEventListener('click', empty);
  photo.hidden = !navigator.mediaDevices;
  photo.addEventListener('click', async () => {
    if (!await photograph(ink)) return;
    isPhoto = true;
    show(true, false);
  });
  parent.append(element);
  return pad;
}

/** The mean of the ink in each of 28 x 28 squares, with its bounding box in the middle. */
function reduced(ink, centred) {
  const {data} = ink.getImageData(0, 0, PAPER, PAPER);
  const inked = (x, y) => data[4 * (y * PAPER + x) + 3];
  let [left, right, top, bottom] = [PAPER, -1, PAPER, -1];
  for (let y = 0; y < PAPER; y++) {
    for (let x = 0; x < PAPER; x++) {
      if (!inked(x, y)) continue;
      [left, right] = [Math.min(left, x), Math.max(right, x)];
      [top, bottom] = [Math.min(top, y), Math.max(bottom, y)];
    }
  }
  const pixels = new Float32Array(SIZE * SIZE);
  if (right < 0) return pixels;
  const shift = (low, high) => centred ? Math.round((PAPER - 1 - low - high) / 2) : 0;
  const [across, down] = [shift(left, right), shift(top, bottom)];
  const square = PAPER / SIZE;
  for (let y = top; y <= bottom; y++) {
    for (let x = left; x <= right; x++) {
      const i = Math.floor((y + down) / square) * SIZE + Math.floor((x + across) / square);
      pixels[i] += inked(x, y);
    }
  }
  return pixels.map((sum) => sum / (255 * square * square));
}

/** Lets a person take a photograph, whose dark parts become ink; returns whether one was taken. */
async function photograph(ink) {
  const dialog = $('camera');
  const video = dialog.querySelector('video');
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({video: {facingMode: 'environment'}});
  } catch (error) {
    $('status').textContent = `There is no camera to use: ${error.message}`;
    return false;
  }
  video.srcObject = stream;
  await video.play();
  dialog.returnValue = '';
  dialog.showModal();
  await new Promise((closed) => {
    dialog.onclose = closed;
    for (const button of dialog.querySelectorAll('button')) {
      button.onclick = () => dialog.close(button.value);
    }
  });
  const taken = dialog.returnValue === 'take';
  if (taken) {
    const side = Math.min(video.videoWidth, video.videoHeight);
    const [x, y] = [(video.videoWidth - side) / 2, (video.videoHeight - side) / 2];
    ink.clearRect(0, 0, PAPER, PAPER);
    ink.drawImage(video, x, y, side, side, 0, 0, PAPER, PAPER);
    const image = ink.getImageData(0, 0, PAPER, PAPER);
    const {data} = image;
    const grey = Float32Array.from({length: PAPER * PAPER}, (_, i) =>
      0.299 * data[4 * i] + 0.587 * data[4 * i + 1] + 0.114 * data[4 * i + 2]);
    const [low, high] = grey.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [255, 0]);
    grey.forEach((value, i) => {
      data.set([0, 0, 0, 255 * (high - value) / Math.max(high - low, 1)], 4 * i);
    });
    ink.putImageData(image, 0, 0);
  }
  stream.getTracks().forEach((track) => track.stop());
  return taken;
}

function makeMeter(number) {
  const [label, meter, value] = ['label', 'meter', 'output'].map((tag) => document.createElement(tag));
  label.textContent = `Character ${number}`;
  label.htmlFor = meter.id = `score${number}`;
  value.htmlFor = meter.id;
  $('scores').append(label, meter, value);
  return {meter, value};
}

/** Runs a signature with typed arrays; returns its one output as another. */
async function run(signature, inputs) {
  const tensors = Object.fromEntries(
    Object.entries(inputs).map(([name, [array, shape]]) => [name, new Tensor(array, shape)]));
  const [output] = Object.values(await model.run(signature, tensors));
  const array = output.toTypedArray().slice();
  [output, ...Object.values(tensors)].forEach((tensor) => tensor.delete()); // of WebAssembly's heap
  return array;
}

/** What the network says of an image after so many steps: a logit for each character. */
async function predict(pixels, steps) {
  const size = trajectory.length / (Number($('steps').max) + 1);
  const weights = trajectory.subarray(size * steps, size * (steps + 1));
  return run('predict_with', {x: [pixels, [1, SIZE, SIZE, 1]], weights: [weights, [size]]});
}

/** The probabilities of the five characters. */
async function scores(pixels, steps) {
  const logits = await predict(pixels, steps);
  const largest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

async function loss(steps) {
  let sum = 0;
  for (const [i, pad] of classes.entries()) sum -= Math.log((await scores(pad.pixels, steps))[i]);
  return sum / WAYS;
}

// One run at a time, in the order of the drawings.
let last = Promise.resolve();
function next(work) {
  last = last.then(work).catch((error) => {
    $('status').textContent = `It failed: ${error.message ?? error}`;
  });
  return last;
}

function learn() {
  return next(async () => {
    if (!model) return;
    trajectory = undefined;
    const missing = classes.filter((pad) => !pad.drawn).length;
    if (missing) {
      $('status').textContent = missing === WAYS ? 'Draw the first character.' : `${missing} to go.`;
    } else {
      const images = Float32Array.from(classes.flatMap((pad) => Array.from(pad.pixels)));
      const begun = performance.now();
      trajectory = await run('adapt', {
        x_support: [images, [WAYS, SIZE, SIZE, 1]],
        y_support: [Int32Array.from(classes.keys()), [WAYS]],
      });
      const milliseconds = Math.round(performance.now() - begun);
      $('status').textContent =
        `Learned ${$('steps').max} steps in ${milliseconds} ms. Draw one of the five again.`;
    }
    await measure();
    await answer();
  });
}

function recognise() {
  return next(answer);
}

async function measure() {
  const steps = Number($('steps').value);
  $('taken').textContent = steps;
  $('before').textContent = trajectory ? (await loss(0)).toFixed(3) : '–';
  $('after').textContent = trajectory ? (await loss(steps)).toFixed(3) : '–';
}

async function answer() {
  const known = trajectory && query.drawn;
  const found = known ? await scores(query.pixels, Number($('steps').value)) : Array(WAYS).fill(0);
  meters.forEach(({meter, value}, i) => {
    meter.value = found[i];
    value.textContent = known ? `${(100 * found[i]).toFixed(1)} %` : '';
  });
  const best = found.indexOf(Math.max(...found));
  $('answer').textContent = known ? `It is character ${best + 1}.` : '';
}

$('steps').addEventListener('input', () => next(async () => {
  await measure();
  await answer();
}));

/** What the page was made of stays in the browser: from then on it works offline. */
async function keep() {
  if (!('serviceWorker' in navigator)) return;
  await navigator.serviceWorker.register('service_worker.js');
  const ours = performance.getEntriesByType('resource').map((entry) => entry.name)
    .filter((name) => name.startsWith(location.origin));
  const cache = await caches.open('keras_maml');
  await cache.addAll([...new Set([location.pathname, ...ours])]);
  document.body.dataset.offline = 'ready';
}

try {
  await loadLiteRt('./litert/core/wasm/');
  model = await loadAndCompile('./learner.tflite', {accelerator: 'wasm'});
  await learn();
  document.body.dataset.ready = 'true';
  await keep();
} catch (error) {
  document.body.dataset.ready = 'false';
  $('status').textContent =
    `The learner could not be loaded (${error.message ?? error}). "make browser-demo" makes its files.`;
}

/** When all that has been drawn is answered. */
const settled = () => last;

export {classes, learn, predict, query, settled};
