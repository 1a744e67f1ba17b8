import sys, json, ast
sys.path.insert(0,'/root/note')
from nbtool import *
P="/tmp/emo/wt/notebooks/10_your_own_images.ipynb"
old=load(P)
oldsrc={"".join(c["source"]):c for c in old["cells"]}
HIDE={'jupyter':{'source_hidden':True}}
C=[]
def M(s): C.append(md(s))
def K(s,tags=None,hide=False):
    meta={}
    if hide: meta['jupyter']={'source_hidden':True}
    if tags: meta['tags']=tags
    C.append(code(s,**meta))
def DEF(name,hide=True):
    """a definition of the module; tools/sync.py writes its body"""
    src=open('/work/main/diffusion_course/images.py').read()
    sys.path.insert(0,'/work/main/tools')
    import sync
    node,start,end=sync.public(src)[name]
    return sync.without_docstrings(src,node,start,end)
exec(open('/tmp/emo/text.py').read())
ids=set()
for c in C:
    while c['id'] in ids: c['id']=c['id'][:-1]+chr(ord('a')+ (ord(c['id'][-1])+1)%26)
    ids.add(c['id'])
old['cells']=C
save(old,P)
words=sum(len("".join(c["source"]).split()) for c in C if c["cell_type"]=="markdown")
print(len(C),'cells',words,'words')
