'use strict';
// Sort a table by a column; enlarge a picture; step through slices; switch the colours. The page is whole without it.

const number = text => {
  const found = text.replace(/,(?=\d{3})/g, '').replace(/\u2212/g, '-').match(/^\s*[<+]?\s*([-+]?\d+(\.\d+)?(e[-+]?\d+)?)/i);
  return found ? parseFloat(found[1]) : NaN;
};
const own = cell => cell.firstChild && cell.firstChild.nodeType === Node.TEXT_NODE ? cell.firstChild.data : cell.textContent;

function sort(table, column, head) {
  const body = table.tBodies[0], rows = [...body.rows];
  rows.forEach((row, i) => {  // a name that stands for several rows is written once: give it to each of them
    if (i && row.cells[0].innerHTML === '') row.cells[0].innerHTML = rows[i - 1].cells[0].innerHTML;
  });
  const down = head.getAttribute('aria-sort') === 'ascending';
  const keys = new Map(rows.map(row => [row, row.cells[column] ? own(row.cells[column]) : '']));
  const numeric = [...keys.values()].some(text => !isNaN(number(text)));
  const compare = (a, b) => {
    const [x, y] = [keys.get(a), keys.get(b)];
    if (!numeric) return x.localeCompare(y, undefined, {numeric: true});
    const [p, q] = [number(x), number(y)];
    return isNaN(p) ? (isNaN(q) ? 0 : Infinity) : isNaN(q) ? -Infinity : p - q;
  };
  rows.sort((a, b) => { const c = compare(a, b); return down && isFinite(c) ? -c : c; });
  for (const other of table.tHead.rows[0].cells) if (other.hasAttribute('aria-sort')) other.setAttribute('aria-sort', 'none');
  head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
  body.append(...rows);
}

for (const table of document.querySelectorAll('.wide:not(.tiles) table')) {
  if (!table.tHead || table.tBodies[0].rows.length < 3) continue;
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.setAttribute('aria-sort', 'none');
    head.tabIndex = 0;
    head.addEventListener('click', () => sort(table, column, head));
    head.addEventListener('keydown', event => { if (event.key === 'Enter') sort(table, column, head); });
  });
}

const dialog = document.createElement('dialog');
document.body.append(dialog);
dialog.addEventListener('click', () => dialog.close());
for (const tile of document.querySelectorAll('svg.tile')) {
  tile.addEventListener('click', () => {
    const row = tile.closest('tr'), caption = document.createElement('p');
    const below = tile.nextElementSibling ? tile.nextElementSibling.textContent : '';
    caption.textContent = [row && row.cells[0] ? row.cells[0].innerText.replace(/\s+/g, ' ') : '', below].join(' ');
    dialog.replaceChildren(tile.cloneNode(true), caption);
    dialog.showModal();
  });
}

for (const slider of document.querySelectorAll('.tiles input[type=range]')) {
  const show = () => {
    for (const tile of slider.closest('tr').querySelectorAll('svg[data-slices]')) {
      const [, , width, height] = tile.getAttribute('viewBox').split(' ').map(Number);
      tile.setAttribute('viewBox', `0 ${slider.value * height} ${width} ${height}`);
    }
  };
  slider.addEventListener('input', show);
  slider.hidden = false;
}

const root = document.documentElement, themes = ['auto', 'light', 'dark'];
const button = document.getElementById('theme');
const paint = theme => {
  if (theme === 'auto') delete root.dataset.theme; else root.dataset.theme = theme;
  if (button) button.textContent = theme;
};
let theme = 'auto';
try { theme = localStorage.getItem('jaxkd-theme') || 'auto'; } catch (e) { /* no storage for files */ }
paint(theme);
if (button) {
  button.hidden = false;
  button.addEventListener('click', () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    try { localStorage.setItem('jaxkd-theme', theme); } catch (e) { /* as above */ }
    paint(theme);
  });
}
