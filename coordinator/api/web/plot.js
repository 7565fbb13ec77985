// Plot: up to two series over time in an SVG, with their latest values, or those under the pointer.

const kSvg = 'http://www.w3.org/2000/svg';
const kHeight = 104, kTop = 8, kBottom = 16;
const kClasses = ['first', 'second'];

function make(name, attributes) {
  const node = document.createElementNS(kSvg, name);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  return node;
}

// The least 1, 2 or 5 times a power of ten that is not below the value.
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((digit) => digit * power).find((limit) => limit >= value * 0.9999);
}

export class Plot {
  // options: title; series: [{name (none when alone), column}] of the history; format: number -> text; least: of the axis; span: samples
  constructor(figure, options) {
    this.options = options;
    this.caption = document.createElement('figcaption');
    const title = document.createElement('span');
    title.textContent = options.title;
    const values = document.createElement('span');
    values.className = 'values';
    this.values = options.series.map((series, i) => {
      const item = document.createElement('span');
      if (series.name) {
        item.className = kClasses[i];
        item.append(series.name + ' ');
      }
      const value = document.createElement('b');
      item.append(value);
      values.append(item);
      return value;
    });
    this.caption.append(title, values);
    this.svg = make('svg', {class: 'plot', role: 'img', 'aria-label': options.title});
    figure.append(this.caption, this.svg);
    this.pointed = null;
    this.svg.addEventListener('pointermove', (event) => this.point(event));
    this.svg.addEventListener('pointerleave', () => this.point(null));
    new ResizeObserver(() => this.draw()).observe(figure);
  }

  // columns: by name, all of one length, oldest first; null where there was nothing.
  update(columns) {
    this.columns = columns;
    this.draw();
  }

  point(event) {
    if (!this.columns) return;
    this.pointed = null;
    if (event) {
      const box = this.svg.getBoundingClientRect();
      const length = this.columns.time.length;
      const index = length - 1 - Math.round((1 - (event.clientX - box.left) / box.width) * (this.options.span - 1));
      if (index >= 0 && index < length) this.pointed = index;
    }
    this.draw();
  }

  draw() {
    if (!this.columns) return;
    const {series, format, span, least} = this.options;
    const width = this.svg.clientWidth || 300;
    const length = this.columns.time.length;
    let top = least;
    for (const {column} of series) for (const value of this.columns[column]) if (value > top) top = value;
    top = roundUp(top);
    const x = (i) => width - (length - 1 - i) * width / (span - 1);
    const y = (value) => kHeight - kBottom - value / top * (kHeight - kTop - kBottom);
    this.svg.setAttribute('viewBox', `0 0 ${width} ${kHeight}`);
    const nodes = [0, top / 2, top].map((value) => make('line', {x1: 0, x2: width, y1: y(value), y2: y(value)}));
    const label = (text, at, anchor) => {
      const node = make('text', {...at, 'text-anchor': anchor});
      node.textContent = text;
      nodes.push(node);
    };
    // Later series lie below, so that the first is seen whole.
    for (let s = series.length - 1; s >= 0; --s) this.drawSeries(nodes, this.columns[series[s].column], kClasses[s], x, y);
    label(format(top).replace(/\.0+(?= |$)/, ''), {x: 0, y: kTop + 11}, 'start');
    label('−5 min', {x: 0, y: kHeight - 3}, 'start');
    label('now', {x: width, y: kHeight - 3}, 'end');
    if (this.pointed !== null) {
      nodes.push(make('line', {class: 'cursor', x1: x(this.pointed), x2: x(this.pointed), y1: kTop, y2: kHeight - kBottom}));
    }
    this.svg.replaceChildren(...nodes);
    series.forEach(({column}, s) => {
      const values = this.columns[column];
      const value = this.pointed === null ? values.findLast((one) => one !== null) : values[this.pointed];
      this.values[s].textContent = value === null || value === undefined ? '–' : format(value);
    });
  }

  drawSeries(nodes, column, name, x, y) {
    let path = '';
    let previous = null;
    column.forEach((value, i) => {
      if (value === null) return;
      const isJoined = previous === i - 1;
      path += `${isJoined ? 'L' : 'M'}${x(i).toFixed(1)} ${y(value).toFixed(1)}`;
      const isAlone = !isJoined && (i + 1 >= column.length || column[i + 1] === null);
      if (isAlone) nodes.push(make('circle', {class: name, cx: x(i), cy: y(value), r: 1.6}));
      previous = i;
    });
    if (path) nodes.push(make('path', {class: name, d: path}));
  }
}
