// Run the script of a page in Node with a minimal document.
// node page_in_node.js PAGE; then one line of JSON an action on stdin:
// {"click": [x, y], "panel": 0}, {"layer": 1} or {"view": 1}. Prints one line each.
'use strict';
const fs = require('fs');
const html = fs.readFileSync(process.argv[2], 'utf-8');
const [, json] = html.match(/<script type="application\/json" id="data">([\s\S]*?)<\/script>/);
const [, script] = html.match(/<script>\n([\s\S]*?)<\/script>/);

class Element {
  constructor() { Object.assign(this, {children: [], listeners: {}, textContent: '', calls: []}); }
  append(...children) { this.children.push(...children); }
  replaceChildren(...children) { this.children = children; }
  addEventListener(name, listener) { this.listeners[name] = listener; }
  setAttribute() {}
  fire(name, event) { this.listeners[name]({...event, target: this}); }
  getContext() {
    const calls = this.calls, context = {calls};
    const names = ['drawImage', 'fillRect', 'strokeRect', 'arc', 'beginPath', 'fill', 'stroke', 'moveTo', 'lineTo'];
    for (const name of names) {
      context[name] = (...values) => {
        const {fillStyle, strokeStyle} = context;
        calls.push({name, values: name === 'drawImage' ? [] : values, fillStyle, strokeStyle});
      };
    }
    return context;
  }
}

const named = {data: new Element()};
named.data.textContent = json;
for (const name of ['heading', 'view', 'layer', 'title', 'caption', 'legend', 'panels', 'status']) named[name] = new Element();
const document = {getElementById: name => named[name], createElement: () => new Element()};
class Image extends Element {
  set src(address) { setImmediate(() => this.fire('load', {})); }
}
new Function('document', 'Image', script)(document, Image);

function print() {
  const panels = named.panels.children.map(figure => ({
    caption: figure.children[0].textContent,
    width: figure.children[1].width,
    height: figure.children[1].height,
    calls: figure.children[1].calls,
  }));
  const legend = named.legend.children.map(entry => entry.children[1]);
  const [heading, title, status] = ['heading', 'title', 'status'].map(name => named[name].textContent);
  const shown = {heading, title, status, legend, panels};
  shown.views = named.view.children.map(option => option.textContent);
  process.stdout.write(JSON.stringify(shown) + '\n');
}

setImmediate(() => setImmediate(() => {
  print();
  for (const line of fs.readFileSync(0, 'utf-8').split('\n').filter(Boolean)) {
    const action = JSON.parse(line);
    if ('click' in action) {
      const canvas = named.panels.children[action.panel || 0].children[1];
      canvas.fire('click', {offsetX: action.click[0], offsetY: action.click[1]});
    } else {
      const name = 'layer' in action ? 'layer' : 'view';
      named[name].value = action[name];
      named[name].fire('input', {});
    }
    print();
  }
}));
