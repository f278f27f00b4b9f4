// Small helpers for the page's elements.

/** The element with an id. */
export function byId(id) {
  return document.getElementById(id);
}

/** Make an element with attributes and children; `svg` elements too. */
export function make(tag, attributes = {}, ...children) {
  const isSvg = SVG_TAGS.has(tag);
  const element = isSvg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const SVG_TAGS = new Set(["svg", "g", "path", "line", "circle", "text"]);

/** Call draw at the next frame, once however often it is asked. */
export function eachFrame(draw) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      draw();
    });
  };
}

/** 12345 as 12,345. */
export function grouped(number) {
  return Math.round(number).toLocaleString("en-US");
}

/** 0.97531 as 97.53%. */
export function percent(part, digits = 2) {
  return `${(100 * part).toFixed(digits)}%`;
}
