// Opens a report page in headless Chromium at two widths and in both colour schemes, runs axe-core on it,
// walks it with the Tab key, and fails on a violation, on a page or a table wider than its window, on text in a chart that a line or
// another text runs through, on focus that does not show, and on any request but the page itself.
//
//   npm install --prefix /tmp/a11y playwright-core axe-core      # anywhere outside the repository
//   gemmtune report RUN_DIR
//   NODE_PATH=/tmp/a11y/node_modules node tests/a11y/check.mjs RUN_DIR/report.html [FOLDER_FOR_SCREENSHOTS]
//
// CHROMIUM names the browser (default /usr/bin/chromium). Not part of the test suite: it needs a browser.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { resolve } from 'node:path';

const require = createRequire(resolve(process.env.NODE_PATH ?? '.', 'here.js'));
const { chromium } = require('playwright-core');
const axe = readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8');
const [file, shots] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync'],
});
let faults = 0;
for (const width of [1280, 390]) {
  for (const colorScheme of ['light', 'dark']) {
    // The page's own policy forbids scripts: it is lifted for the checker alone.
    const context = await browser.newContext({ viewport: { width, height: 900 }, colorScheme, bypassCSP: true });
    const page = await context.newPage();
    const requests = [];
    page.on('request', (request) => requests.push(request.url()));
    await page.goto(`file://${resolve(file)}`);
    if (shots) await page.screenshot({ path: `${shots}/${width}-${colorScheme}.png`, fullPage: true });
    const wide = await page.evaluate(() => document.documentElement.scrollWidth);
    const cut = await page.evaluate(() => [...document.querySelectorAll('.scroll')]
      .filter((region) => region.scrollWidth > region.clientWidth + 1)
      .map((region) => region.getAttribute('aria-label')));
    // Axes, joins and whiskers are straight, so their boxes say whether one runs through a text. Grid lines end at labels.
    const crossed = await page.evaluate(() => [...document.querySelectorAll('svg[role="img"]')].flatMap((svg) => {
      const lines = [...svg.querySelectorAll('line')].map((line) => line.getBoundingClientRect());
      const texts = [...svg.querySelectorAll('text')];
      return texts.filter((text) => {
        const a = text.getBoundingClientRect();
        const others = texts.filter((other) => other !== text).map((other) => other.getBoundingClientRect());
        return [...lines, ...others].some((b) => b.left < a.right - 1 && b.right > a.left + 1 && b.top < a.bottom - 2 && b.bottom > a.top + 2);
      }).map((text) => text.textContent);
    }));
    await page.evaluate(axe);
    const { violations } = await page.evaluate(() => axe.run());
    for (const { id, help, nodes } of violations) {
      console.log(`${width} ${colorScheme}: ${id}: ${help}: ${nodes.map((node) => node.target).join(' ')}`);
    }
    if (wide > width) console.log(`${width} ${colorScheme}: the page is ${wide} wide`);
    for (const name of cut) console.log(`${width} ${colorScheme}: a table is cut: ${name}`);
    for (const name of crossed) console.log(`${width} ${colorScheme}: a line or a text runs through "${name}"`);
    if (requests.length !== 1) console.log(`${width} ${colorScheme}: requests: ${requests.join(' ')}`);
    faults += violations.length + (wide > width) + cut.length + crossed.length + (requests.length !== 1);
    // With the keyboard alone: Tab reaches every stop in order, each shows where it is, and the end is reached.
    const stops = await page.evaluate(() => document.querySelectorAll('a[href], summary, [tabindex="0"]').length);
    let reached = 0;
    for (; reached <= stops; reached += 1) {
      await page.keyboard.press('Tab');
      const at = await page.evaluate(() => {
        const { activeElement } = document;
        const { outlineStyle, outlineWidth } = getComputedStyle(activeElement);
        return { name: activeElement.tagName, shown: outlineStyle !== 'none' && parseFloat(outlineWidth) >= 2 };
      });
      if (at.name === 'BODY') break;
      if (!at.shown) console.log(`${width} ${colorScheme}: focus is not shown on stop ${reached} (${at.name})`);
      faults += !at.shown;
    }
    if (reached !== stops) console.log(`${width} ${colorScheme}: Tab reached ${reached} of ${stops} stops`);
    faults += reached !== stops;
    await context.close();
  }
}
await browser.close();
console.log(faults === 0 ? 'no fault found' : `${faults} faults`);
process.exit(faults === 0 ? 0 : 1);
