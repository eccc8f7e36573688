// Add a search box above the table of all configs: hide rows that lack one of its words.
// The address may contain the words too: configs.html?q=dat+coco
const table = document.querySelector('#all-configs table');
if (table) {
  const rows = [...table.tBodies[0].rows];
  const label = document.createElement('label');
  const box = document.createElement('input');
  const shown = document.createElement('output');
  label.append('Filter rows: ', box);
  box.type = 'search';
  box.value = new URLSearchParams(location.search).get('q') ?? '';
  box.oninput = () => {
    const words = box.value.toLowerCase().split(/\s+/);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
    const count = rows.filter((row) => !row.hidden).length;
    shown.textContent = ` ${count} of ${rows.length}`;
  };
  box.oninput();
  table.parentElement.before(label, shown);
}
