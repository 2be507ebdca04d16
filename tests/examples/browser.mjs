// Draws five shapes on the page and redraws them: node browser.mjs URL SEED PICTURES
// Prints as JSON what the page saw and said.
import path from 'node:path';
import {createRequire} from 'node:module';

const [url, seed, pictures] = process.argv.slice(2);
const puppeteer = createRequire(path.join(process.cwd(), 'package.json'))('puppeteer-core');

// On a square of 1.
const SHAPES = [
  [[[0.2, 0.2], [0.8, 0.8]], [[0.8, 0.2], [0.2, 0.8]]],
  [[[0.2, 0.2], [0.2, 0.8], [0.8, 0.8]]],
  [[[0.5, 0.15], [0.5, 0.85]], [[0.2, 0.4], [0.8, 0.4]]],
  [[[0.2, 0.8], [0.5, 0.2], [0.8, 0.8], [0.2, 0.8]]],
  [[[0.2, 0.2], [0.8, 0.2], [0.8, 0.8], [0.2, 0.8], [0.2, 0.2]]],
];

let state = Number(seed);
const random = () => (state = (state * 1103515245 + 12345) % 2 ** 31) / 2 ** 31 - 0.5;

/** The same shape by another hand: elsewhere, of another size and slant, with points missed. */
function redrawn(strokes) {
  const [angle, width, height] = [0.3 * random(), 1 + 0.2 * random(), 1 + 0.2 * random()];
  const [right, down] = [0.1 * random(), 0.1 * random()];
  return strokes.map((points) => points.map(([x, y]) => {
    const [a, b] = [width * (x - 0.5), height * (y - 0.5)];
    return [
      0.5 + right + Math.cos(angle) * a - Math.sin(angle) * b + 0.06 * random(),
      0.5 + down + Math.sin(angle) * a + Math.cos(angle) * b + 0.06 * random(),
    ];
  }));
}

const browser = await puppeteer.launch({
  executablePath: process.env.CHROMIUM,
  timeout: 120000, // a machine may be busy
  args: ['--no-sandbox', '--disable-gpu', '--use-fake-device-for-media-stream',
    '--use-fake-ui-for-media-stream'],
});
try {
  const page = await browser.newPage();
  const errors = [];
  page.on('pageerror', (error) => errors.push(error.message));
  await page.setViewport({width: 1280, height: 800});
  await page.goto(url);
  const ready = async () => {
    const begun = Date.now();
    const body = await page.waitForSelector('body[data-ready]', {timeout: 120000});
    if (await body.evaluate((element) => element.dataset.ready) !== 'true') {
      throw new Error(await page.$eval('#status', (element) => element.textContent));
    }
    return Date.now() - begun;
  };
  const loading = await ready();
  const pads = await page.$$('.paper');

  const mouse = {
    down: async (x, y) => { await page.mouse.move(x, y); await page.mouse.down(); },
    move: (x, y) => page.mouse.move(x, y, {steps: 8}),
    up: () => page.mouse.up(),
  };
  const finger = {
    down: (x, y) => page.touchscreen.touchStart(x, y),
    move: (x, y) => page.touchscreen.touchMove(x, y),
    up: () => page.touchscreen.touchEnd(),
  };
  async function draw(pad, strokes, hand = mouse) {
    await pad.evaluate((element) => element.scrollIntoView({block: 'center'}));
    const box = await pad.boundingBox();
    const at = ([x, y]) => [box.x + x * box.width, box.y + y * box.height];
    for (const [first, ...rest] of strokes) {
      await hand.down(...at(first));
      for (const point of rest) await hand.move(...at(point));
      await hand.up();
    }
  }
  const settled = () => page.evaluate(async () => (await import('./page.js')).settled());
  const text = (selector) => page.$eval(selector, (element) => element.textContent);
  const scores = () => page.$$eval('meter', (meters) => meters.map((meter) => meter.value));
  const steps = async (count) => {
    await page.$eval('#steps', (slider, value) => {
      slider.value = value;
      slider.dispatchEvent(new Event('input'));
    }, count);
    await settled();
  };

  for (const [i, shape] of SHAPES.entries()) await draw(pads[i], shape);
  await settled();
  const support = await page.evaluate(async () =>
    (await import('./page.js')).classes.map((pad) => Array.from(pad.pixels)));
  const learned = {
    status: await text('#status'), before: await text('#before'), after: await text('#after'),
  };

  const queries = [];
  const clear = await page.$('#asked .clear');
  for (const hand of [mouse, mouse, mouse, finger]) {
    for (const [i, shape] of SHAPES.entries()) {
      await clear.click();
      await draw(pads[5], redrawn(shape), hand);
      await settled();
      queries.push({
        character: i,
        answer: await text('#answer'),
        scores: await scores(),
        ...await page.evaluate(async () => {
          const {predict, query} = await import('./page.js');
          const pixels = Array.from(query.pixels);
          const begun = performance.now();
          const logits = Array.from(await predict(query.pixels, 3));
          return {pixels, logits, milliseconds: performance.now() - begun};
        }),
      });
    }
  }
  const adaptations = [];
  for (let i = 0; i < 10; i++) {
    await page.evaluate(async () => (await import('./page.js')).learn());
    adaptations.push(Number((await text('#status')).match(/(\d+) ms/)[1]));
  }
  await steps(0);
  const without = await scores();
  await steps(3);

  if (pictures) {
    for (const [width, height] of [[1280, 800], [390, 844]]) {
      await page.setViewport({width, height});
      await page.screenshot({path: path.join(pictures, `${width}.png`), fullPage: true});
    }
    await page.setViewport({width: 1280, height: 800});
  }

  await (await page.$('#asked .photo')).click();
  await page.waitForSelector('#camera[open]');
  await page.click('#camera button[value=take]');
  await page.waitForSelector('#camera:not([open])');
  await settled();
  const photograph = await page.evaluate(async () =>
    Array.from((await import('./page.js')).query.pixels));

  await page.waitForSelector('body[data-offline]');
  await page.setOfflineMode(true);
  // Chromium stops a worker that has nothing to do; a message starts it.
  await page.evaluate(async () => (await navigator.serviceWorker.ready).active.postMessage(''));
  const worker = await browser.waitForTarget((target) => target.type() === 'service_worker');
  const session = await worker.createCDPSession(); // a page's mode is not its worker's
  const nothing = {offline: true, latency: 0, downloadThroughput: -1, uploadThroughput: -1};
  await session.send('Network.enable');
  await session.send('Network.emulateNetworkConditions', nothing);
  await page.reload();
  await ready();
  const offline = {
    status: await text('#status'),
    reached: await page.evaluate(() => fetch('package.json').then(() => true, () => false)),
  };
  console.log(JSON.stringify({
    chromium: await browser.version(),
    loading, support, learned, queries, adaptations, without, photograph, offline, errors,
  }));
} finally {
  await browser.close();
}
